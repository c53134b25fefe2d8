"""The ClientApp and `YoloClient(NumPyClient)`: one client's work on one data set.

It may import the rooms from common to protocol, never aggregation or server.
Start at yolo_client.py, which users subclass; app.py carries messages to it.
"""
