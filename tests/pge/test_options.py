import json
from pathlib import Path

import pytest

from jaxtransfer.errors import JaxTransferError
from jaxtransfer.pge.options import LossName, PGEOptions

EARLIER = Path(__file__).parents[1] / "support" / "version_0_1_0" / "pge" / "run.json"


def test_settings_are_those_that_version_0_1_0_recorded():
    options = PGEOptions(size=16, restarts=16, ways=3, shots=2, queries=3, control=False)
    recorded = json.loads(EARLIER.read_text())["settings"]
    assert options.as_settings(["prototypical", "prototypical"], 3) == recorded


@pytest.mark.parametrize(
    ("options", "losses", "present", "absent"),
    [
        (PGEOptions(), ["prototypical"], "tolerance cap symmetry ways shots queries", "batch_size heads form limit"),
        (PGEOptions(restarts=64), ["random-head"], "symmetry batch_size heads", "tolerance cap ways shots queries"),
        (
            PGEOptions(measure="alignment"),
            ["squared-error", "prototypical"],
            "tolerance cap ways shots queries batch_size heads",
            "symmetry",
        ),
    ],
)
def test_settings_are_the_options_that_these_losses_use(options, losses: list[LossName], present, absent):
    settings = options.as_settings(losses, 1)
    assert settings.keys() >= {*present.split()}
    assert not settings.keys() & {*absent.split()}
    assert settings["loss"] == " and ".join(sorted(losses))
    assert settings["groups"] == (32 if options.measure == "alignment" else 16)
    assert settings.get("heads", 16) == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "prototypcal"}, "There is no loss 'prototypcal'; there are: prototypical, random-head"),
        ({"measure": "alignment", "restarts": 31}, "32 groups need 32 restarts or more, not 31"),
        ({"loss": "random-head", "batch_size": 0}, "A batch needs one image or more, not 0"),
        ({"heads": 0}, "There must be one pair of heads or more, not 0"),
        ({"queries": 0}, "one or more shots and queries"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(JaxTransferError, match=message):
        PGEOptions(**options)


def test_options_that_are_not_used_are_not_checked():
    assert PGEOptions(loss="random-head", ways=0).ways == 0
    assert PGEOptions(batch_size=0).batch_size == 0
