# SPDX-License-Identifier: Apache-2.0
"""The table of faults of the live nodes: what is injected, what must come of it, and in what time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

from lifecycle_msgs.msg import Transition
from std_msgs.msg import String

from faults.node_world import CONTRACT, PERIOD_S, SAFE, World

TWO_PERIODS_S = 2 * PERIOD_S
WAIT_S, WAIT_MS = 2.5 * PERIOD_S, 2500 * PERIOD_S  # of holds and timeouts
NAN, INF = float("nan"), float("inf")
Inject = Callable[[World], float]  # returns when the fault began: the last good observation


@dataclasses.dataclass(frozen=True)
class Fault:
    """One row. `reaction` is safe, none, inactive or either; `counted` are the counters that must rise, `a|b` either.

    `said` is part of the last reason on `interventions`, `swap` of one on `model_swap`.
    """

    name: str
    injected: str
    outcome: str
    inject: Inject
    reaction: str = "safe"
    counted: tuple[str, ...] = ()
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    limit_s: float = TWO_PERIODS_S
    acts_on: bool = False  # the fault is over at its end, and so is the reaction
    said: str = ""
    swap: str = ""


def stops(world: World) -> float:
    world.run(4)
    return world.last_good_s


def bad_state(**changes: Any) -> Inject:
    """One observation is bad, at its time; what came before it was the last good one."""

    def inject(world: World) -> float:
        world.advance()
        world.clock(world.t_ns)
        world.force(world.t_ns, changes.get("force", 0.5))
        world.state(world.t_ns, **{key: value for key, value in changes.items() if key != "force"})
        began_s = world.last_good_s
        world.run(4)
        return began_s

    return inject


def repeated(say: Callable[[World, int], None], periods: int = 9) -> Inject:
    """Something else than a good observation, once a period."""

    def inject(world: World) -> float:
        began_s, count = world.last_good_s, iter(range(10_000))
        world.run(periods, lambda: say(world, next(count)))
        return began_s

    return inject


def no_force(world: World, _: int) -> None:
    world.advance()
    world.state(world.t_ns)


def force_stops(world: World) -> float:
    """The first observation without a new force is good, since the last one is no older than its max_age."""
    world.run(1, lambda: no_force(world, 0))
    world.last_good_s = time.monotonic() - PERIOD_S
    return repeated(no_force)(world)


def frozen_stamps(world: World, _: int) -> None:
    world.force(world.t_ns)
    world.state(world.t_ns)


def late(world: World, k: int) -> None:
    t_ns = world.t_ns - 3 * CONTRACT.period_ns + k
    world.force(t_ns)
    world.state(t_ns)


def reordered(world: World, _: int) -> None:
    world.advance()
    world.force(world.t_ns)
    world.state(world.t_ns, names=("elbow", "shoulder"))


def one_joint(world: World, _: int) -> None:
    world.advance()
    world.force(world.t_ns)
    world.state(world.t_ns, names=("shoulder",))


def doubled(world: World, _: int) -> None:
    world.tick()
    world.force(world.t_ns)
    world.state(world.t_ns)


def out_of_order(world: World, k: int) -> None:
    """Every fifth message comes after its successor."""
    world.tick()
    if k % 5 == 4:
        world.state(world.t_ns - CONTRACT.period_ns)


def twice_as_fast(world: World, _: int) -> None:
    world.tick()
    half_ns = CONTRACT.period_ns // 2
    world.force(world.t_ns + half_ns)
    world.state(world.t_ns + half_ns)


def slow(world: World, k: int) -> None:
    """A fifth of the rate."""
    world.advance()
    if k % 5 == 4:
        world.force(world.t_ns)
        world.state(world.t_ns)


def jump(by_s: float) -> Inject:
    def inject(world: World) -> float:
        world.offset_ns += round(by_s * 1e9)
        began_s = world.last_good_s
        world.run(8, world.tick)
        return began_s

    return inject


def stop_pressed(world: World) -> float:
    began_s, world.stop_beats = time.monotonic(), False
    world.stop_topic(True)
    world.run(8, world.tick)
    assert all(values == SAFE for at_s, values in world.commands if at_s > began_s + TWO_PERIODS_S)
    return began_s


def stop_lost(world: World) -> float:
    world.stop_topic(False)
    began_s, world.stop_beats = time.monotonic(), False
    world.run(8, world.tick)
    return began_s


def bad_context(*values: float) -> Inject:
    def inject(world: World) -> float:
        world.context(values)
        began_s = world.last_good_s
        world.run(8, world.tick)
        return began_s

    return inject


def foreign_context(world: World) -> float:
    began_s = time.monotonic()
    world.context(model=12345)
    world.run(8, world.tick)
    return began_s


def context_stops(world: World) -> float:
    began_s = time.monotonic()
    world.context()
    world.run(8, world.tick)
    return began_s


def clock_freezes(world: World) -> float:
    """States go on, with the stamps of the robot's own clock."""

    def say() -> None:
        world.advance()
        world.force(world.t_ns)
        world.state(world.t_ns)

    began_s = world.last_good_s
    world.run(12, say)
    return began_s


def deactivated(world: World) -> float:
    began_s = time.monotonic()
    world.change(Transition.TRANSITION_DEACTIVATE)
    world.run(5, world.tick)
    return began_s


def callback_raises(world: World) -> float:
    began_s = time.monotonic()
    world.episode.publish(String(data="no JSON"))
    world.run(5, world.tick)
    return began_s


def bad_then_good(world: World) -> float:
    began_s = world.last_good_s
    world.advance()
    world.force(world.t_ns)
    world.state(world.t_ns, values=(0.1, 0.2, NAN, 0.4))
    world.run(1)
    world.run(8, world.tick)
    return began_s


OBSERVATIONS = (
    Fault("states stop", "The robot stops publishing.", "Safe action.", stops, counted=("silence|fault",)),
    Fault("a second stream stops", "`force` stops, the states continue.",
          "Safe action once it is older than max_age, 1.25 periods.", force_stops,
          counted=("fault",), said="force: stale"),
    Fault("NaN", "A velocity is NaN.", "Safe action at once.", bad_state(values=(0.1, 0.2, NAN, 0.4)),
          counted=("fault",), said="velocity.shoulder is not finite"),
    Fault("infinite", "A position is infinite.", "Safe action at once.", bad_state(values=(INF, 0.2, 0.3, 0.4)),
          counted=("fault",)),
    Fault("NaN in a second stream", "The force is NaN.", "Safe action at once.", bad_state(force=NAN),
          counted=("fault",), said="force: vector.x is not finite"),
    Fault("no velocities", "The array of velocities is empty.", "Not read; safe action since nothing else comes.",
          bad_state(values=(0.1, 0.2, None, None)), counted=("unreadable", "silence|fault")),
    Fault("a joint is missing", "States name the shoulder only.",
          "The elbow's last value is used while it is fresh; then the safe action.",
          repeated(one_joint), counted=("incomplete", "silence|fault"), limit_s=0.05 + TWO_PERIODS_S),
    Fault("joints in another order", "States list the joints in reverse order.",
          "Nothing changes: joints are read by name.", repeated(reordered), "none"),
    Fault("a fifth of the rate", "States come at a fifth of the contract's rate.", "Safe action between them.",
          repeated(slow), counted=("silence|fault",)),
    Fault("twice the rate", "States come at twice the contract's rate.", "Nothing changes: every second one is a tick.",
          repeated(twice_as_fast), "none"),
    Fault("late messages", "States are stamped three periods before the last one.", "Dropped; safe action.",
          repeated(late), counted=("silence|fault",)),
    Fault("frozen stamps", "States continue, their stamps stand still.", "Dropped as duplicates; safe action.",
          repeated(frozen_stamps), counted=("silence|fault",)),
    Fault("duplicates", "Every message arrives twice.", "Nothing changes.", repeated(doubled), "none"),
    Fault("out of order", "Every fifth state arrives again after its successor.", "Nothing changes.",
          repeated(out_of_order), "none"),
    Fault("clock jumps forward", "Stamps jump ahead by 100 s, the force first.",
          "Safe action until both streams have jumped, then a new sequence from there.", jump(100.0),
          counted=("sequences begun", "fault"), acts_on=True),
    Fault("clock jumps back", "Stamps jump back by 100 s, the force first.", "The same.", jump(-100.0),
          counted=("sequences begun", "fault"), said="clock jumped back by", acts_on=True),
)  # fmt: skip
GUARDS = (
    Fault("emergency stop", "`emergency_stop` publishes true.",
          "Safe action at once, and in answer to each observation.", stop_pressed, counted=("emergency stop",)),
    Fault("the stop topic is lost, ignore",
          "`emergency_stop` was received once and falls silent; estop_loss is ignore.", "Keeps acting.", stop_lost,
          "none"),
    Fault("the stop topic is lost, stop", "The same for 2.5 periods, estop_timeout_s; estop_loss is stop.",
          "Safe action.", stop_lost,
          counted=("emergency stop",), params={"estop_loss": "stop"}, limit_s=WAIT_S + TWO_PERIODS_S, said="silent"),
    Fault("out of the box", "position.elbow is 0.9, allowed [-0.5, 0.5].", "Safe action.",
          bad_state(values=(0.1, 0.9, 0.3, 0.4)), counted=("workspace",),
          params={"workspace_fields": ["position.elbow"], "workspace_low": [-0.5], "workspace_high": [0.5]},
          said="position.elbow is 0.9, allowed [-0.5, 0.5]"),
    Fault("a NaN within the hold", "One state is NaN; hold_ms is 2.5 periods.",
          "The last command stays in effect; no safe action.", bad_then_good, "none",
          counted=("hold",), params={"hold_ms": [WAIT_MS]}),
    Fault("silence beyond the hold", "States stop; hold_ms is 2.5 periods.",
          "Safe action after 1.5 periods and the hold.",
          lambda world: (stops(world), world.run(4))[0], counted=("hold", "silence|fault"),
          params={"hold_ms": [WAIT_MS]}, limit_s=WAIT_S + TWO_PERIODS_S),
    Fault("clock jumps back beyond the first stream's hold", "Stamps jump back by 100 s, the force first; hold_ms is "
          "2.5 periods for the states and 0 for the force.",
          "Safe action at once: the hold of the states covers the states alone.",
          jump(-100.0), counted=("sequences begun", "fault"), params={"hold_ms": [WAIT_MS, 0.0]},
          said="s on force", acts_on=True),
    Fault("silence for long", "States stop; deactivate_after_s is 7.5 periods.", "Safe action, then inactive.",
          lambda world: (stops(world), world.run(8))[0], "inactive", counted=("silence|fault", "closed"),
          params={"deactivate_after_s": [3 * WAIT_S]}),
    Fault("frozen /clock", "use_sim_time; /clock stands still, stamps advance.",
          "Safe action after 5 periods, clock_timeout_s.", clock_freezes,
          counted=("frozen clock",), params={"use_sim_time": True}, limit_s=2 * WAIT_S + TWO_PERIODS_S),
)  # fmt: skip
CONTEXT = (
    Fault("NaN in the context", "z holds a NaN.", "Not read; keeps acting with the last z.",
          bad_context(0, 0, NAN, 0, 0), "none", counted=("unreadable",)),
    Fault("a context of another size", "z has two numbers.", "Not read; keeps acting with the last z.",
          bad_context(1, 2), "none", counted=("unreadable",)),
    Fault("a context of another model", "z was made by another checkpoint's encoder.", "Safe action.", foreign_context,
          counted=("foreign model",), said="made by model 12345"),
    Fault("the context stops, act on", "z stops arriving; context_timeout_s is 0.", "Keeps acting with the last z.",
          context_stops, "none"),
    Fault("the context stops, safe", "The same; context_timeout_s is 2.5 periods.", "Safe action.", context_stops,
          counted=("context lost",), params={"context_timeout_s": WAIT_S}, limit_s=WAIT_S + TWO_PERIODS_S),
)  # fmt: skip
LIFECYCLE = (
    Fault("deactivate", "The service change_state deactivates.", "Safe action, inactive.", deactivated, "inactive",
          counted=("closed",)),
    Fault("a callback raises", "`episode` holds no JSON.", "Safe action, inactive, reason on `/diagnostics`.",
          callback_raises, "inactive", counted=("closed",)),
)  # fmt: skip
FAULTS = (*OBSERVATIONS, *GUARDS, *CONTEXT, *LIFECYCLE)
