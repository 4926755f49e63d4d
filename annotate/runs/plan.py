"""What a run would ask, and what a run has come to; nothing is sent or stored.

A plan is the dataset read, its statistics taken, all questions written. A summary says what to do about requests that
have no answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from storage.catalog import component_columns
from storage.datasets import is_finite, list_episodes, pick, read_manifest, read_steps, require_finite
from storage.errors import BadInput, ProviderFailed
from storage.ledger import asked_runs, requests_of
from storage.schema import Episode, Manifest, content_id
from storage.store import Store

from ..cards import Card, card_sha256, check_card_against_spaces
from ..costs import Estimate, TokenCounter, correct_by_count, correct_by_replies, estimate_requests
from ..ledger import GO_ON, NO_BATCH, Run, Totals, find_replies, unanswered
from ..parsing import ParsedReply
from ..prompting import (
    AnnotateConfig,
    FrameSource,
    Method,
    Question,
    Request,
    RequestBuilder,
    describe_dataset,
    prompt_version,
    select_episodes,
    spread_by_return,
    with_action_indices,
)


@dataclass(frozen=True)
class RunPlan:
    """A run, and everything needed to ask its questions and to understand the replies."""

    run: Run
    card: Card
    config: AnnotateConfig
    questioner: RequestBuilder
    episodes: Mapping[int, Episode]  # asked about; discrete actions are indices into the card's list
    questions: tuple[Question, ...]  # of the first stage

    @property
    def is_study(self) -> bool:
        """Whether it only studies the dataset, for the labels that are asked for then."""
        return self.config.kind == "study"

    @property
    def requests(self) -> list[Request]:
        """The requests of the first stage."""
        return [question.request for question in self.questions]


def plan_run(
    store: Store,
    dataset_id: str,
    card: Card,
    config: AnnotateConfig | None = None,
    *,
    limit: int | None = None,
    select: Method = "first",
    select_seed: int = 0,
    frames: FrameSource | None = None,
) -> RunPlan:
    """Write the questions of a run.

    The run's id comes from all that is asked, so the same arguments always mean the same run; which episodes are asked
    about does not count.

    Args:
        store: holds the dataset.
        dataset_id: the dataset.
        card: of its environment.
        config: model, number of labels and the like.
        limit: episodes to ask about; all when None.
        select: how they are chosen, see `selection.select_episodes`.
        select_seed: of that choice.
        frames: renders critical steps, where the configuration asks for frames.

    Raises:
        BadInput: if there is no such dataset, it holds numbers that are not finite, or the card is not one for it.
        DamagedStore: if the dataset is damaged.
    """
    config = config or AnnotateConfig()
    manifest = read_manifest(store, dataset_id)
    _check_card(card, manifest)
    first_action = manifest.action_space.start
    episodes = [with_action_indices(episode, first_action) for episode in list_episodes(store, dataset_id)]
    if not all(map(is_finite, episodes)):
        require_finite(read_steps(store, dataset_id), dataset_id)
    statistics = describe_dataset(episodes, card)
    median = next(episode for episode in episodes if episode.episode_id == statistics.median_episode)
    questioner = RequestBuilder(card, config, statistics, median, frames)
    if config.kind != "labels":
        _check_names(card, manifest)
        chosen = spread_by_return(episodes, config.tables)
    else:
        chosen = select_episodes(episodes, limit, method=select, seed=select_seed)
    asked = {episode.episode_id: episode for episode in chosen}
    questions = (
        questioner.ask_whole(chosen)
        if config.kind != "labels"
        else [question for episode in chosen for question in questioner.ask_first(episode)]
    )
    return RunPlan(
        run=_name_run(dataset_id, questioner, first_action),
        card=card,
        config=config,
        questioner=questioner,
        episodes=asked,
        questions=tuple(questions),
    )


def plan_again(store: Store, name: str | None, render: Callable[[str], FrameSource]) -> RunPlan:
    """The plan of a run that was started before, about the episodes that it has asked about.

    Args:
        store: holds the run.
        name: of the run, or the beginning of it; the newest one that asked a model when None.
        render: makes the pictures of a dataset, where the run shows some.

    Raises:
        BadInput: if there is no such run, or its prompt or its data have changed since.
    """
    with store.catalog.read() as con:
        runs = {run.run_id: run for run in asked_runs(con)}
        if not runs:
            raise BadInput("No run of this store has asked a model.", "`trajnote annotate run` starts one.")
        run_id = list(runs)[-1] if name is None else pick(name, list(runs), "annotation run")
        asked = requests_of(con, run_id)
    run = runs[run_id]
    config = AnnotateConfig.model_validate_json(run.config)
    frames = render(run.dataset_id) if config.frames else None
    plan = plan_run(store, run.dataset_id, Card.model_validate_json(run.card), config, frames=frames)
    questions = tuple(question for question in plan.questions if question.request.request_id in asked)
    if plan.run.run_id != run_id or not questions:
        raise BadInput(
            f"The prompt or the data of the run {run_id} have changed since its requests were sent.",
            "`trajnote annotate run` asks with the current ones.",
        )
    return replace(plan, questions=questions)


def unanswered_requests(store: Store, plan: RunPlan) -> list[Request]:
    """The requests that no reply in the store answers; a second stage's as soon as the first is answered."""
    return _sort_out(store, plan)[0]


def all_questions(store: Store, plan: RunPlan) -> list[Question]:
    """The questions of a plan as far as they are known: those of a second stage follow from the first one's answers."""
    return [*plan.questions, *(second_questions(store, plan) if plan.config.two_stage else ())]


def second_questions(store: Store, plan: RunPlan) -> list[Question]:
    """What to ask about the steps that the first stage found so far; episodes without any are finished."""
    with store.catalog.read() as con:
        is_open = unanswered(con, plan.questions)
    first = [question for question in plan.questions if question.request.request_id not in is_open]
    return [
        plan.questioner.ask_second(
            plan.episodes[question.episode_id],
            [(label.step, label.rationale) for label in reading.labels],
            question.sample,
        )
        for question, reading in earlier_readings(store, plan, first)
        if reading.labels and question.episode_id is not None
    ]


def earlier_readings(store: Store, plan: RunPlan, questions: Sequence[Question]) -> list[tuple[Question, ParsedReply]]:
    """What the store's replies to some answered questions say."""
    replies = find_replies(store, [question.request.request_id for question in questions])
    return [(question, replies[question.request.request_id].read(question, plan.card)) for question in questions]


def estimate_run(
    store: Store,
    plan: RunPlan,
    *,
    batch: bool = False,
    count: TokenCounter | None = None,
    max_tokens: int | None = None,
) -> Estimate:
    """What the rest of a run will cost; each first stage that is open counts for a second one of equal length too.

    Args:
        store: holds the plan's dataset.
        plan: from `plan_run`.
        batch: at the price of Message Batches.
        count: counts the tokens of some requests, where a server can be asked.
        max_tokens: cap on a reply; that of the requests when None, for the server's limit is not asked for.
    """
    unanswered, answered = _sort_out(store, plan)
    cap = plan.config.cap(max_tokens, None, streamed=batch)
    pending = [replace(request, max_tokens=cap) for request in unanswered]
    with store.catalog.read() as con:
        known = correct_by_replies(con, plan.config.model, plan.config.entries)
    return estimate_requests(
        pending,
        [request for request in pending if request.kind == "identify"],
        answered=answered,
        labels=plan.config.entries,
        batch=batch,
        known=known if count is None else correct_by_count(pending, count),
    )


def _sort_out(store: Store, plan: RunPlan) -> tuple[list[Request], int]:
    """Of all requests known so far, those without a reply, and how many have one."""
    asked = all_questions(store, plan)
    with store.catalog.read() as con:
        is_open = unanswered(con, asked)
    pending = [question.request for question in asked if question.request.request_id in is_open]
    return pending, len(asked) - len(pending)


def _check_card(card: Card, manifest: Manifest) -> None:
    if manifest.env_id is not None and card.env_id != manifest.env_id:
        raise BadInput(
            f"The card is for {card.env_id}, the dataset {manifest.dataset_id} is of {manifest.env_id}.",
            "Name the right card with --card.",
        )
    check_card_against_spaces(card, manifest.observation_space, manifest.action_space)


def _check_names(card: Card, manifest: Manifest) -> None:
    """Rules speak of columns, so the card's names must be those of the dataset."""
    named, there = component_columns(card.component_names), component_columns(manifest.component_names)
    if named != there or not named:
        raise BadInput(
            f"The card of {card.env_id} calls the columns {', '.join(named)}; the dataset {manifest.dataset_id} has "
            f"{', '.join(there)}.",
            "Rules need equal names: collect or import the dataset with this card (--card).",
        )


def _name_run(dataset_id: str, questioner: RequestBuilder, first_action: int) -> Run:
    """A run is named by what it says and how it chooses rows; a card's claims say nothing to a model."""
    card, config = questioner.card, questioner.config
    identity = [questioner.systems, card.model_dump(mode="json", exclude={"claims"}), config.identity_fields]
    kind = "mark" if config.kind == "labels" else config.kind
    version = prompt_version(kind, "playbook" if config.playbook else "feedback" if config.feedback else None)
    return Run(
        run_id=content_id("a_", [dataset_id, version, *identity]),
        dataset_id=dataset_id,
        model=config.model,
        prompt_version=version,
        card_sha256=card_sha256(card),
        config=config.identity_fields,
        first_action=first_action,
    )


_REASONS = 4
"""Reasons that a message names."""

_ADVICE = (
    ("413", "Ask for less in each request: fewer --rows, --labels or, for rules, --tables."),
    ("--max-tokens", "Answers are kept: with a larger --max-tokens only the other requests are asked again."),
    ("stream", "Requests are sent without streaming: name a server, or a proxy before it, that answers in one piece."),
)
"""What to do about a reason, by a word that stands in it."""


def advise(errors: Iterable[str], failed: int, stopped: str | None = None) -> str:
    """What to do about requests without an answer."""
    if stopped and stopped.startswith(NO_BATCH):
        return GO_ON
    found = [advice for word, advice in _ADVICE if any(word in error for error in errors)]
    if found:
        return " ".join(found)
    again = " `trajnote annotate retry` asks again those that have failed." if failed else ""
    return f"Answers are kept; the same command asks the other requests again.{again}"


@dataclass(frozen=True)
class RunSummary:
    """What a run has come to."""

    run_id: str
    dataset_id: str
    model: str
    episodes: int
    was_done: bool  # there was nothing left to do
    done: bool
    reused: int  # requests that were answered before this command
    asked: int  # requests that went to the provider now
    answered: int  # of those, how many got a reply
    pending: int  # requests without a reply; the same command asks them again
    failed: int  # of those, how many were refused by the server
    errors: Counter[str]  # what was said about requests without a reply, and how often
    stopped: str | None  # why no further request was sent
    estimated_usd: float | None  # what the answered requests were expected to cost when they were sent
    totals: Totals  # labels, rejections, tokens and dollars of the whole run
    under_way: int = 0  # of those, how many are in batches
    is_halted: bool = False  # it was stopped by what the server did, not by the budget
    is_study: bool = False  # it asked about the dataset; the questions about its episodes come next

    @property
    def failure(self) -> ProviderFailed | None:
        """Why labels are missing, where that is the server's doing; None if nothing is missing for such a reason."""
        if not self.errors and not self.is_halted:
            return None
        reasons = [f"{count} times {error}" for error, count in self.errors.most_common(_REASONS)]
        if len(self.errors) > _REASONS:
            reasons.append(f"and {len(self.errors) - _REASONS} other reasons")
        missing = f"{self.errors.total()} of {self.pending + self.reused + self.answered} requests have no answer"
        problems = [f"{missing}: {'; '.join(reasons)}"] if reasons else []
        problem = "; ".join([self.stopped, *problems] if self.is_halted and self.stopped else problems)
        return ProviderFailed(f"{problem}.", advise(self.errors, self.failed, self.stopped))
