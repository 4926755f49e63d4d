"""`trajnote.toml`: what it means, where its paths lead, and how a wrong key, value or name is told in one line."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from flows.deployment.intake import period_start
from flows.deployment.settings import CollectPlan, read_deployment, read_settings, write_template
from storage.errors import BadInput, Prerequisite

SMALL = '[deployments.a]\ninbox = "in"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "trajnote.toml"
    path.write_text(text)
    return path


def test_the_file_that_init_writes_is_valid_and_says_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "trajnote.toml"
    write_template(path)
    name, config = read_deployment(None, path)
    assert (name, config.cron, config.refine_after, config.label.provider) == ("nightly", "0 2 * * *", 100, "batch")
    assert config.collect is not None
    assert (config.collect.episodes, config.store) == (20, tmp_path / "trajnote-store")
    with pytest.raises(BadInput, match="already"):
        write_template(path)


def test_what_stands_at_the_top_holds_for_all_and_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    text = f"""store = "s"
refine_after = 7
{SMALL}baseline = "policy:weights"
[deployments.b]
datasets = ["x"]
refine_after = 9
baseline = "policy:refined-1"
"""
    known = read_settings(write(tmp_path, text)).deployments
    assert [known[name].refine_after for name in "ab"] == [7, 9]
    assert (known["a"].store, known["a"].inbox) == (tmp_path / "s", tmp_path / "in")
    assert (known["a"].baseline, known["b"].baseline) == (f"policy:{tmp_path / 'weights'}", "policy:refined-1")


def test_the_store_is_that_of_the_option_then_of_the_variable_then_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, f'store = "s"\n{SMALL}[deployments.b]\ninbox = "in"\nstore = "t"\n')

    def stores(option: Path | None = None) -> list[Path]:
        return [config.store for config in read_settings(path, option).deployments.values()]

    monkeypatch.chdir(tmp_path)
    for unset in ("", None):
        monkeypatch.setenv("TRAJNOTE_STORE", unset) if unset is not None else monkeypatch.delenv("TRAJNOTE_STORE")
        assert stores() == [tmp_path / "s", tmp_path / "t"]
    monkeypatch.setenv("TRAJNOTE_STORE", "variable")
    assert stores() == [tmp_path / "variable"] * 2
    assert stores(Path("option")) == [tmp_path / "option"] * 2
    assert read_deployment("b", path)[1].store == tmp_path / "variable"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '[deployments.a]\ninbox = "in"\nrefine_atfer = 3\n',
            r"a\.refine_atfer is not a known key; allowed are store, env_id",
        ),
        (
            SMALL + "[deployments.a.improve.gate]\nselct = 3\n",
            r"selct is not a known key; allowed are first_seed, method, select",
        ),
        (SMALL + "refine_after = 0\n", r"a\.refine_after: Input should be greater than or equal to 1 \(received 0\)"),
        ('[deployments.a]\nenv_id = "CartPole-v1"\n', "a deployment needs rollouts"),
        (SMALL + 'cron = "* * * * *"\ninterval_s = 4\n', "exclude each other"),
        (SMALL + 'timezone = "Mars/Olympus"\n', "there is no time zone 'Mars/Olympus'"),
        (SMALL + 'runner = "spark"\n', "Unknown runner 'spark'.*dask:ADDRESS"),
        (SMALL + 'notify = "slack"\n', "`block-type/name` is expected"),
        ("deployments = 3\n", "deployments: .*received 3"),
        ("", "deployments is missing"),
        ("[deployments\n", "is not TOML"),
        ("[deployments.a.collect]\nepisodes = 3\n", r"a\.collect\.policy is missing"),
    ],
)
def test_a_wrong_file_is_refused_with_the_key_the_value_and_what_is_allowed(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(BadInput, match=said) as refused:
        read_settings(write(tmp_path, text))
    assert "\n" not in str(refused.value)


def test_a_deployment_is_found_by_name_or_is_the_only_one(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL + '[deployments.b]\ninbox = "in"\n')
    assert read_deployment("b", path)[0] == "b"
    with pytest.raises(BadInput, match="Which deployment"):
        read_deployment(None, path)
    with pytest.raises(BadInput, match="There is no deployment 'c'"):
        read_deployment("c", path)
    with pytest.raises(Prerequisite, match="trajnote init"):
        read_settings(tmp_path / "other.toml")


def test_a_period_begins_by_the_clock_of_the_deployments_time_zone() -> None:
    now = datetime(2026, 11, 18, 23, 30, tzinfo=UTC)  # a Wednesday; in Tokyo it is Thursday, 8:30
    begun = {
        per: period_start(now, CollectPlan(policy="random", per=per), "Asia/Tokyo").astimezone(UTC)
        for per in ("hour", "day", "week")
    }
    assert begun["hour"] == datetime(2026, 11, 18, 23, 0, tzinfo=UTC)
    assert begun["day"] == datetime(2026, 11, 18, 15, 0, tzinfo=UTC)
    assert begun["week"] == datetime(2026, 11, 15, 15, 0, tzinfo=UTC)
