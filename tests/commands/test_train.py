"""`msa train` starts the launcher with the run's settings."""

from msa_train.cli import main


def test_settings_reach_the_launcher(monkeypatch):
    given = []
    monkeypatch.setattr(
        "msa_train.training.launch.launch", lambda *options: given.append(options) or 3
    )
    run = ["train", "--config", "a.yaml", "--training.steps", "2", "--ranks", "2", "--resume"]
    assert main(run) == 3
    assert main(["train", "--config", "a.yaml"]) == 3
    assert given == [
        (["--config", "a.yaml", "--training.steps", "2"], 2, True),
        (["--config", "a.yaml"], 1, False),
    ]
