"""An app that trains nothing: the server asks the nodes that are there for their names."""

import time

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

server = ServerApp()
client = ClientApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Wait for a node, ask all, print `hello from NAME`, and fail if the run's config says how."""
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(1)
    questions = [
        Message(RecordDict(), dst_node_id=node, message_type=MessageType.QUERY) for node in nodes
    ]
    for reply in grid.send_and_receive(questions, timeout=120):
        said = reply.error.reason if reply.has_error() else reply.content["answer"]["name"]
        print(f"hello from {said}")
    if reason := context.run_config["fail"]:
        raise ValueError(reason)


@client.query()
def answer(message: Message, context: Context) -> Message:
    """Answer with the name in --node-config."""
    name = ConfigRecord({"name": context.node_config["name"]})
    return Message(RecordDict({"answer": name}), reply_to=message)
