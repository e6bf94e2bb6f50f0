"""Optuna as Tune's searcher, by its own ask and tell: no point is tried twice.

Ray's `OptunaSearch` hands out whatever Optuna draws. In a space of choices and whole numbers that is soon a
point which runs already or is done, and two trials in one run folder would be at each other's checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ray.tune.search import Searcher

from brainfoundry.core.errors import ConfigError

_ASKS = 20
"""Draws in a row that were tried before, after which an untried one is looked for."""


class OptunaSearcher(Searcher):
    """Suggests points of a space that were not tried before, and learns from those that end.

    Args:
        space: name -> Optuna's distribution.
        name_of: what tells points apart: parameters -> name.
        done: parameters and score of points that are known.
        tried: names of all points that are not to be suggested.
        first: parameters to suggest before all others.
        points: all there are, where they can be counted, in the order in which they are tried when the
            sampler draws nothing new.
        seed: of the sampler; another one after every interruption, or it would draw the same points again.
    """

    def __init__(
        self,
        space: Mapping[str, Any],
        name_of: Callable[[Mapping[str, Any]], str],
        *,
        metric: str,
        mode: str,
        seed: int,
        done: Iterable[tuple[Mapping[str, Any], float]] = (),
        tried: Iterable[str] = (),
        first: Sequence[Mapping[str, Any]] = (),
        points: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        import optuna

        super().__init__(metric=metric, mode=mode)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._name_of, self._tried = dict(space), name_of, set(tried)
        self._points = points
        self._fail = optuna.trial.TrialState.FAIL
        self._asked: dict[str, Any] = {}
        self.study = optuna.create_study(
            direction="maximize" if mode == "max" else "minimize",
            sampler=optuna.samplers.TPESampler(seed=seed),
        )
        for parameters, value in done:
            known = optuna.trial.create_trial(params=dict(parameters), value=value, distributions=self._space)
            self.study.add_trial(known)
        for parameters in first:
            self.study.enqueue_trial(dict(parameters))

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]  # as its docs say
        """Parameters of a point that is new; Searcher.FINISHED where there is none."""
        while True:
            for _ in range(_ASKS):
                asked = self.study.ask(self._space)
                name = self._name_of(asked.params)
                if name not in self._tried:
                    self._tried.add(name)
                    self._asked[trial_id] = asked
                    return dict(asked.params)
                self.study.tell(asked, state=self._fail)
            # A sampler that has found a good place looks nowhere else.
            untried = next((p for p in self._points if self._name_of(p) not in self._tried), None)
            if untried is None:
                return Searcher.FINISHED
            self.study.enqueue_trial(dict(untried))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: who is given up early is the scheduler's to say."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna what came of it; a point without a score has taught it nothing."""
        asked = self._asked.pop(trial_id, None)
        value = (result or {}).get(self.metric)
        if asked is not None and value is not None:
            self.study.tell(asked, value)
        elif asked is not None:
            self.study.tell(asked, state=self._fail)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: an interrupted search is taken up from its records."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as nothing was saved."""


def require_optuna() -> None:
    """Refuse a study that needs Optuna where it is not installed.

    Raises:
        ConfigError: names the extra.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "the study's search needs Optuna, which is not installed",
            fix="pip install 'brainfoundry[tune]', or write algorithm: random",
        ) from error
