"""The section of a run's page, and its line on the terminal, on the clients' personal models."""

from federated_yolo.common.text import counted, format_duration, format_score
from federated_yolo.reporting.page import Section, Sheet
from federated_yolo.reporting.run_numbers import title_of
from federated_yolo.reporting.run_record import PRIMARY, Run, filled_columns


def personal_section(run: Run) -> Section:
    """Show what each client's training for itself has gained, on its val and test split."""
    filled = filled_columns(run.personal_models)
    metric = next((m for m in PRIMARY if f"global/{m}" in filled), None)
    splits = [start for start in ("", "test/") if f"{start}global/{metric}" in filled]
    head = [
        f"{start.replace('/', ': ')}{model}" for start in splits for model in ("global", "personal")
    ]
    rows = [
        [
            row["client"],
            *(
                format_score(row.get(f"{start}{model}/{metric}"))
                for start in splits
                for model in ("global", "personal")
            ),
            {"true": "yes", "false": "no"}.get(row["kept"], ""),
            format_duration(row["seconds"]) if row.get("seconds") is not None else "",
            row.get("note") or "",
        ]
        for row in run.personal_models
    ]
    columns = ["client", *head, "kept", "time", "remarks"]
    sheet = Sheet("Personal models", columns, rows, text_columns=(0, len(columns) - 1))
    start = "its own model of the last round" if run.is_personal else "the global model"
    note = (
        f"{title_of(metric) if metric else 'Scores'} of {start} and of the personal model that a "
        "client trained from it, on the client's own splits. It is kept, as personal.pt in the "
        "client's folder, if its fitness on the val split is higher."
    )
    return Section("Personal models", note, sheets=[sheet])


def personal_summary(run: Run) -> str:
    """Return in one line which clients have kept a model of their own."""
    tried = [row for row in run.personal_models if row["kept"]]
    kept = [row["client"] for row in tried if row["kept"] == "true"]
    names = f": {', '.join(kept)}" if kept else ""
    return f"{len(kept)} of {counted(len(tried), 'client')} kept a personal model{names}"
