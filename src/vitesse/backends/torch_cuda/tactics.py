"""Which candidate computes a step: found right, measured once, and remembered under the step's signature."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from vitesse.backends.torch_cuda.candidates import (
    PLAIN,
    DeviceFacts,
    Kernel,
    Kernels,
    Run,
    Tactic,
    tactic_of,
)
from vitesse.backends.torch_cuda.comparing import disagreement
from vitesse.backends.torch_cuda.device import facts_of, working_on
from vitesse.backends.torch_cuda.measure import microseconds
from vitesse.backends.torch_cuda.problem import Composed, Problem
from vitesse.errors import BackendError, ModelError, VitesseError

# Compilers work beside Python: Triton's holds the interpreter's lock for a tenth of its time. As many at once as there
# are cores.
COMPILING = max(4, os.cpu_count() or 1)
MOST_TACTICS = 32
SCHEMA = 1


@dataclass(frozen=True)
class Trial:
    """What became of one tactic: its microseconds, or why it was dropped."""

    tactic: Tactic
    microseconds: float | None = None
    error: str = ""


@dataclass(frozen=True)
class Choice:
    """The tactic of a signature, what was tried for it, and the kernels that refused, with their reasons.

    Args:
        microseconds: None where nothing but the plain function was right, and where nothing was measured.
        guessed: not measured, but taken from another size or a kernel's own ranking; never in a cache.
    """

    tactic: Tactic
    microseconds: float | None = None
    trials: tuple[Trial, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    family: str = ""
    sizes: tuple[tuple[int, ...], ...] = ()
    guessed: bool = False


@dataclass
class Spent:
    """Seconds that choosing took: to compile candidates and hold them against the plain function, to measure them."""

    compiling: float = 0.0
    measuring: float = 0.0

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Add what is done inside to "compiling" or "measuring"."""
        begin = perf_counter()
        try:
            yield
        finally:
            setattr(self, part, getattr(self, part) + perf_counter() - begin)


@dataclass
class TacticCache:
    """Signature → choice, and the machine it was measured on; `to_json` gives what stands in the artifact.

    Where `trusted` is off, because the machine is another one, its tactics are guesses that have to be checked.
    `spent` is what the choices took that were made in this process.
    """

    made_on: Mapping[str, str] = field(default_factory=dict)
    choices: dict[str, Choice] = field(default_factory=dict)
    trusted: bool = True
    spent: Spent = field(default_factory=Spent, compare=False)

    def nearest(self, problem: Problem) -> Tactic | None:
        """Return the tactic of the same step at the nearest size: near is the sum of |log(size / size)|."""
        same = [choice for choice in self.choices.values() if choice.family == problem.family]
        found = [(_distance(choice.sizes, problem.sizes), choice) for choice in same]
        usable = [(distance, choice) for distance, choice in found if math.isfinite(distance)]
        return min(usable, key=lambda pair: pair[0])[1].tactic if usable else None

    def to_json(self) -> str:
        """Serialise, for a reader and for `from_json`."""
        choices = {signature: _choice_document(choice) for signature, choice in self.choices.items()}
        document = {"schema": SCHEMA, "made_on": dict(self.made_on), "choices": choices}
        return json.dumps(document, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> TacticCache:
        """Read it back.

        Raises:
            ModelError: it is not what `to_json` writes, or another schema.
        """
        try:
            raw = json.loads(text)
            if raw["schema"] != SCHEMA:
                raise ModelError(f"tactics of schema {raw['schema']}", expected=f"schema {SCHEMA}")
            choices = {str(name): _choice_of(entry) for name, entry in raw["choices"].items()}
            return cls({str(name): str(value) for name, value in raw["made_on"].items()}, choices)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"cannot read the tactics: {type(error).__name__}: {error}",
                expected="the JSON that `vitesse build` writes",
                cause="the file was edited or cut off",
            ) from error


def choose(
    problem: Problem,
    kernels: Kernels,
    device: torch.device,
    cache: TacticCache,
    *,
    measure: bool = True,
    seconds: float = 0.2,
    most: int = MOST_TACTICS,
) -> tuple[Choice, Run]:
    """Return the choice for a step and the call that computes it.

    A signature that the cache knows is taken as it stands there. Otherwise every tactic of every kernel that does not
    refuse is prepared, run, held against the plain function and, if it is right, measured; the fastest is kept in the
    cache. Without `measure` the first one that is right is taken: that of the nearest size, then the kernels' own best
    guesses; it is not kept. On the CPU, and where nothing else is right, it is the plain function. For the parts of a
    kernel that is composed the same is done first.

    Args:
        seconds: for the final rounds of measuring one signature.
        most: tactics of each kernel that are tried, its best guesses first.
    """
    known = cache.choices.get(problem.signature) if cache.trusted else None
    if known is not None:
        prepared = _prepared(problem, known.tactic, kernels)
        if prepared is not None:
            return known, prepared

    def chosen(part: Problem) -> tuple[Choice, Run]:
        return choose(part, kernels, device, cache, measure=measure, seconds=seconds, most=most)

    pairs, refused = offered(problem, kernels, facts_of(device), most, chosen)
    if not measure:
        return _first_right(problem, kernels, pairs, refused, cache.nearest(problem))
    found, runs = _measured(problem, pairs, device, seconds, cache.spent)
    right = [trial for trial in found if trial.microseconds is not None]
    best = min(right, key=lambda trial: trial.microseconds or 0.0, default=Trial(PLAIN))
    choice = Choice(
        best.tactic, best.microseconds, tuple(found), refused, family=problem.family, sizes=problem.sizes
    )
    cache.choices[problem.signature] = choice
    return choice, runs.get(_key(best.tactic), problem.plain)


def _prepared(problem: Problem, tactic: Tactic, kernels: Kernels) -> Run | None:
    """The call of a known tactic; None where its kernel does not load here or cannot do it any more."""
    if tactic.kernel == PLAIN.kernel:
        return problem.plain
    kernel = kernels.found.get(tactic.kernel)
    if kernel is None:
        return None
    try:
        return kernel.prepare(problem.tensors, problem.attributes, tactic)
    except Exception:  # libraries raise dozens of kinds; whatever it was, another candidate takes over
        return None


def offered(
    problem: Problem,
    kernels: Kernels,
    facts: DeviceFacts,
    most: int,
    chosen: Callable[[Problem], tuple[Choice, Run]],
) -> tuple[list[tuple[Kernel, Tactic]], dict[str, str]]:
    """Return what may compute a step, at most `most` tactics of each kernel; and kernels that refuse, with reasons.

    Args:
        chosen: gives the choice for a part of a kernel that is composed.
    """
    made: list[tuple[Kernel, list[Tactic]]] = []
    refused: dict[str, str] = {}
    if facts.capability == (0, 0) and not kernels.on_cpu:
        return [], {kernel.name: "there is no GPU" for kernel in kernels.of(problem.step)}
    for kernel in kernels.of(problem.step):
        try:
            reason = kernel.refuses(problem.tensors, problem.attributes, facts)
            if reason:
                refused[kernel.name] = reason
            else:
                made.append((kernel, kernel.tactics(problem.tensors, problem.attributes, facts)[:most]))
        except Exception as error:  # a kernel that cannot even answer must not end a build
            refused[kernel.name] = f"{type(error).__name__}: {_line(error)}"
    whole = [(kernel, _with_parts(problem, kernel, tactics, chosen)) for kernel, tactics in made]
    return [(kernel, tactic) for kernel, tactics in whole for tactic in tactics], refused


def _with_parts(
    problem: Problem,
    kernel: Kernel,
    tactics: list[Tactic],
    chosen: Callable[[Problem], tuple[Choice, Run]],
) -> list[Tactic]:
    """The tactics of a kernel that is composed with what was chosen for its parts; those of others as they are."""
    if not isinstance(kernel, Composed):
        return tactics
    choices = [chosen(part)[0] for part in kernel.parts(problem.tensors, problem.attributes)]
    parts = [choice.tactic.document() for choice in choices]
    return [Tactic(tactic.kernel, {**tactic.config, "parts": parts}) for tactic in tactics]


def _measured(
    problem: Problem,
    offered: Sequence[tuple[Kernel, Tactic]],
    device: torch.device,
    seconds: float,
    spent: Spent,
) -> tuple[list[Trial], dict[str, Run]]:
    """Every tactic prepared and run (compilers beside each other), held against the plain function, and timed."""
    runs: dict[str, Run] = {}
    errors: dict[str, str] = {}
    with spent.on("compiling"):
        expected = problem.plain(*problem.tensors)
        made = _all_prepared(problem, offered, device)
        for (_, tactic), (run, error) in zip(offered, made, strict=True):
            error = error or _wrong(problem, run, expected)
            errors[_key(tactic)] = error
            if not error and run is not None:
                runs[_key(tactic)] = run
    calls: list[Callable[[], object]] = [_call(run, problem.tensors) for run in runs.values()]
    with spent.on("measuring"):
        times = microseconds(calls, problem.changing, device, seconds) if calls else []
    timed = dict(zip(runs, times, strict=True))
    trials = []
    for _, tactic in offered:
        taken = timed.get(_key(tactic), math.inf)
        said = errors[_key(tactic)] or ("" if math.isfinite(taken) else "cannot be captured in a CUDA graph")
        trials.append(Trial(tactic, None if said else round(taken, 3), said))
    return trials, runs


def _all_prepared(
    problem: Problem, offered: Sequence[tuple[Kernel, Tactic]], device: torch.device
) -> list[tuple[Run | None, str]]:
    """Prepare and run each once; on a GPU on several threads, because most of it is waiting for compilers."""
    if device.type != "cuda" or len(offered) < 2:
        return [ran_once(problem, *pair) for pair in offered]

    def on_gpu(pair: tuple[Kernel, Tactic]) -> tuple[Run | None, str]:
        with working_on(device):
            return ran_once(problem, *pair)

    with ThreadPoolExecutor(COMPILING) as threads:
        made = list(threads.map(on_gpu, offered))
    synchronise(device, problem.signature)
    return made


def ran_once(problem: Problem, kernel: Kernel, tactic: Tactic) -> tuple[Run | None, str]:
    """Prepare a candidate and run it once, so that it is compiled: the call and "", or None and why there is none."""
    try:
        run = kernel.prepare(problem.tensors, problem.attributes, tactic)
        run(*problem.tensors)
    except Exception as error:  # see _prepared
        return None, f"{type(error).__name__}: {_line(error)}"
    return run, ""


def _first_right(
    problem: Problem,
    kernels: Kernels,
    offered: Sequence[tuple[Kernel, Tactic]],
    refused: Mapping[str, str],
    nearest: Tactic | None,
) -> tuple[Choice, Run]:
    allowed = {kernel.name for kernel, _ in offered}
    # One guess of each kernel, in the order of the table; a second one is no better founded.
    guesses: dict[str, Tactic] = {}
    for kernel, tactic in offered:
        guesses.setdefault(kernel.name, tactic)
    known = [nearest] if nearest is not None and nearest.kernel in allowed else []
    first = [*known, *guesses.values()]
    expected: tuple[Tensor | None, ...] | None = None
    trials: list[Trial] = []
    for tactic in first:
        run = _prepared(problem, tactic, kernels)
        if run is None:
            trials.append(Trial(tactic, error="cannot be prepared"))
            continue
        expected = problem.plain(*problem.tensors) if expected is None else expected
        error = _wrong(problem, run, expected)
        if not error:
            return Choice(tactic, None, tuple(trials), refused, guessed=True), run
        trials.append(Trial(tactic, error=error))
    return Choice(PLAIN, None, tuple(trials), refused, guessed=True), problem.plain


def _wrong(problem: Problem, run: Run | None, expected: Sequence[Tensor | None]) -> str:
    """Why what a candidate computes cannot be taken; "" where it is right."""
    if run is None:
        return "cannot be prepared"
    try:
        found = run(*problem.tensors)
        return disagreement(found, expected, wanted=problem.attributes.get("wanted", ""))
    except VitesseError:
        raise
    except Exception as error:  # see _prepared
        return f"{type(error).__name__}: {_line(error)}"


def synchronise(device: torch.device, step: str) -> None:
    """Wait for the GPU. Raises BackendError, which names `step`, where a candidate for it broke the GPU's context."""
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        raise BackendError(
            f"a candidate for {step} broke the GPU's context: {_line(error)}",
            cause="a kernel read or wrote outside its tensors; nothing can run in this process any more",
            fix="run the build again with CUDA_LAUNCH_BLOCKING=1 to see which",
        ) from error


def _call(run: Run, tensors: Sequence[Tensor | None]) -> Callable[[], object]:
    return lambda: run(*tensors)


def _distance(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> float:
    if [len(shape) for shape in first] != [len(shape) for shape in second]:
        return math.inf
    pairs = [
        (a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    ]
    if any((a == 0) != (b == 0) for a, b in pairs):
        return math.inf
    return sum(abs(math.log(a / b)) for a, b in pairs if a)


def _key(tactic: Tactic) -> str:
    return json.dumps(tactic.document(), sort_keys=True)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _choice_document(choice: Choice) -> dict[str, Any]:
    trials = [{**asdict(trial), "tactic": trial.tactic.document()} for trial in choice.trials]
    document = {**asdict(choice), "tactic": choice.tactic.document(), "trials": trials}
    document.pop("guessed")
    return document


def _choice_of(raw: Mapping[str, Any]) -> Choice:
    trials = tuple(
        Trial(tactic_of(entry["tactic"]), _number(entry["microseconds"]), str(entry["error"]))
        for entry in raw["trials"]
    )
    sizes = tuple(tuple(int(length) for length in shape) for shape in raw["sizes"])
    refused = {str(name): str(reason) for name, reason in raw["refused"].items()}
    return Choice(
        tactic_of(raw["tactic"]), _number(raw["microseconds"]), trials, refused, str(raw["family"]), sizes
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
