# SPDX-License-Identifier: Apache-2.0
"""Handlers for the services of the package simulation_interfaces, without that package or ROS.

Requests and responses are any objects with the fields of its definitions (release 2.1).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Protocol

INFO = "a step is one control period; simulated time only moves forward; the worlds are the task families or a model"


class PlayState(enum.IntEnum):
    """SimulationState."""

    STOPPED = 0
    PLAYING = 1
    PAUSED = 2
    QUITTING = 3
    NO_WORLD = 4
    LOADING_WORLD = 5


class Code(enum.IntEnum):
    """Result, with the additional codes of SetSimulationState."""

    FEATURE_UNSUPPORTED = 0
    OK = 1
    INCORRECT_STATE = 3
    OPERATION_FAILED = 4
    ALREADY_IN_TARGET_STATE = 101
    STATE_TRANSITION_ERROR = 102


class Feature(enum.IntEnum):
    """The supported SimulatorFeatures."""

    SIMULATION_RESET = 20
    SIMULATION_RESET_STATE = 22
    SIMULATION_STATE_GETTING = 24
    SIMULATION_STATE_SETTING = 25
    SIMULATION_STATE_PAUSE = 26
    STEP_SIMULATION_SINGLE = 31
    STEP_SIMULATION_MULTIPLE = 32


class Scope(enum.IntFlag):
    """ResetSimulation."""

    DEFAULT = 0
    TIME = 1
    STATE = 2
    SPAWNED = 4
    ALL = 255


class Steps:
    """A request for steps while paused."""

    def __init__(self, wanted: int, finished: Callable[[str], None]) -> None:
        """`finished` is called once: with "" after all steps, or else with the reason."""
        self._wanted, self._finished, self._done, self._over = wanted, finished, 0, False

    def step(self) -> bool:
        """Count a step; returns whether it was the last."""
        self._done += 1
        if self._done == self._wanted:
            self._end("")
        return self._over

    def give_up(self, reason: str) -> None:
        self._end(f"{reason}, after {self._done} of {self._wanted} steps")

    def _end(self, reason: str) -> None:
        if not self._over:
            self._over = True
            self._finished(reason)


class Player(Protocol):
    """The interface of a simulation to the services."""

    @property
    def play_state(self) -> PlayState: ...

    def play_episode(self, paused: bool | None) -> None:
        """End a running episode and start the next; None: keep the pause. Raises ValueError."""

    def pause(self, paused: bool) -> None: ...

    def stop(self) -> None:
        """End the episode, and start another only on request."""

    def quit(self) -> None: ...

    def step_paused(self, steps: Steps) -> None:
        """Begin steps while paused, reporting each to `steps`. Raises ValueError."""


class SimControl:
    """One handler for each service."""

    def __init__(self, player: Player) -> None:
        self._player = player

    def features(self, _: Any, response: Any) -> Any:
        """GetSimulatorFeatures."""
        response.features.features = [int(feature) for feature in Feature]
        response.features.custom_info = INFO
        return response

    def state(self, _: Any, response: Any) -> Any:
        """GetSimulationState."""
        response.state.state = int(self._player.play_state)
        return _filled(response, Code.OK)

    def set_state(self, request: Any, response: Any) -> Any:
        """SetSimulationState. A stopped simulation can be played, or started paused."""
        wanted, now = request.state.state, self._player.play_state
        if wanted in (PlayState.NO_WORLD, PlayState.LOADING_WORLD):
            return _filled(response, Code.FEATURE_UNSUPPORTED, "loading and unloading worlds is not supported")
        if wanted not in list(PlayState):
            return _filled(response, Code.OPERATION_FAILED, f"unknown state {wanted}")
        if wanted == now:
            return _filled(response, Code.ALREADY_IN_TARGET_STATE, f"already {now.name.lower()}")
        try:
            self._change(PlayState(wanted), now)
        except ValueError as error:
            return _filled(response, Code.STATE_TRANSITION_ERROR, str(error))
        return _filled(response, Code.OK)

    def _change(self, wanted: PlayState, now: PlayState) -> None:
        paused = wanted == PlayState.PAUSED
        if wanted == PlayState.STOPPED:
            self._player.stop()
        elif wanted == PlayState.QUITTING:
            self._player.quit()
        elif now == PlayState.STOPPED:
            self._player.play_episode(paused)
        else:
            self._player.pause(paused)

    def reset(self, request: Any, response: Any) -> Any:
        """ResetSimulation: start the next episode, paused if the simulation was paused."""
        scope = Scope(request.scope)
        everything = scope in (Scope.DEFAULT, Scope.ALL)
        if not everything and scope != Scope.STATE:
            why = "only SCOPE_STATE, SCOPE_ALL and SCOPE_DEFAULT: time only moves forward, and nothing is spawned"
            return _filled(response, Code.FEATURE_UNSUPPORTED, f"scope {request.scope}: {why}")
        try:
            self._player.play_episode(None)
        except ValueError as error:
            return _filled(response, Code.OPERATION_FAILED, str(error))
        return _filled(response, Code.OK, "simulated time is not reset" if everything else "")

    def step(self, request: Any, response: Any, answer: Callable[[Any], None]) -> None:
        """StepSimulation: `answer` gets the response after the steps, or when they fail."""
        if self._player.play_state != PlayState.PAUSED:
            answer(_filled(response, Code.OPERATION_FAILED, "pause a running episode first"))
        elif request.steps < 1:
            answer(_filled(response, Code.OPERATION_FAILED, f"steps is {request.steps}; use at least 1"))
        else:

            def finished(reason: str) -> None:
                answer(_filled(response, Code.OPERATION_FAILED if reason else Code.OK, reason))

            try:
                self._player.step_paused(Steps(request.steps, finished))
            except ValueError as error:
                finished(str(error))


def _filled(response: Any, code: Code, message: str = "") -> Any:
    response.result.result, response.result.error_message = int(code), message
    return response
