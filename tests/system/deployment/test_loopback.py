"""What tests of a deployment stand on: parts that are killed come back, nothing stays behind."""

from pathlib import Path

import pytest
from loopback import COMPLETED, FAILED, deployment

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc"),
]

ECHO = Path(__file__).parent / "echo_app"


def test_a_run_ends_with_its_state_reason_and_log_and_the_parts_come_back_after_a_crash(
    tmp_path: Path,
) -> None:
    with deployment(tmp_path, ("north",)) as flower:
        flower.start_superlink()
        flower.register("north")
        flower.start_supernode("north", name="a site")
        flower.wait_online("north")
        run = flower.wait(flower.submit(ECHO, fail="no such number"))
        assert run.status == FAILED
        assert "no such number" in run.details
        assert "hello from a site" in run.log
        flower.kill("superlink")
        flower.start_superlink()  # which knows the key from its database
        flower.kill("north")
        flower.wait_offline("north")
        flower.start_supernode("north", name="another")
        run = flower.wait(flower.submit(ECHO))
        assert run.status == COMPLETED, run.log
        assert "hello from another" in run.log
    assert flower.processes() == []
