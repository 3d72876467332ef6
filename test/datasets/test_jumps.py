# SPDX-License-Identifier: Apache-2.0
"""Steps far beyond all others are found and guessed at; noise, switches and gears are left alone."""

from __future__ import annotations

import numpy as np
import pytest

from spc_core.data.jumps import Guess, find_jumps
from support.contracts import make_contract, stream_section

PERIOD_NS = 20_000_000
TYPE = "geometry_msgs/msg/QuaternionStamped"


def jumps(*columns: np.ndarray, names=("a", "b", "c", "d"), joined=None):
    values = np.column_stack(columns)
    fields = [f"quaternion.{name}" for name in names[: values.shape[1]]]
    contract = make_contract(observation=[stream_section("pose", fields, TYPE)])
    whole = np.ones(len(values) - 1, bool) if joined is None else joined
    return find_jumps(np.arange(len(values)) * PERIOD_NS, values, whole, contract)


def wander(steps: int = 1000, seed: int = 0) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).normal(size=steps)) * 0.01


def test_a_reset_is_found_where_it_is():
    a, b = wander(seed=1), wander(seed=2)
    for k in (250, 600):
        a[k:] += 2.0 - a[k]
        b[k:] -= 1.5 + b[k]
    a[250:], b[250:] = a[250:] + 3, b[250:] - 3
    (found,) = jumps(a, b)
    assert (found.guess, found.count, found.fields) == (Guess.RESET, 2, ("pose.quaternion.a", "pose.quaternion.b"))
    assert found.at_s == (5.0, 12.0) and found.steps == 999
    assert found.others < 0.06 and found.size > 1
    assert "2 of 999 transitions step by" in found.text and "at 5.00, 12.00 s; as with a reset" in found.text


def test_a_step_between_two_episodes_is_none():
    a = wander()
    a[500:] += 5
    joined = np.ones(999, bool)
    joined[499] = False
    assert jumps(a, joined=joined) == []
    assert len(jumps(a)) == 1


def test_a_second_publisher_goes_there_and_back():
    a = 5 + wander()
    a[::5] = 0.0
    (found,) = jumps(a)
    assert (found.guess, found.count) == (Guess.PUBLISHER, 399)


def test_a_second_publisher_is_found_where_its_values_are_among_the_others():
    a = 2 * np.sin(np.arange(1000) / 50)
    a[::5] = 0.0
    (found,) = jumps(a)
    assert found.guess is Guess.PUBLISHER and found.count > 250
    a = 2 * np.sin(np.arange(1000) / 50)
    a[::2] = 9.0
    (found,) = jumps(a)
    assert found.guess is Guess.PUBLISHER and found.count > 900


def test_a_quaternion_that_changes_its_sign_is_told_by_its_four_fields():
    angle = np.linspace(0.5, 2.5, 1000)
    q = np.stack([np.sin(angle / 2) * 0.6, np.sin(angle / 2) * 0.8, 0.001 * np.sin(angle), np.cos(angle / 2)])
    q[:, 300:700] *= -1
    (found,) = jumps(*q, names=("x", "y", "z", "w"))
    assert found.guess is Guess.QUATERNION and found.at_s == (6.0, 14.0)
    assert "rotation_6d" in found.text


@pytest.mark.parametrize("turn", [2 * np.pi, 360.0])
def test_an_angle_that_wraps_is_told_by_a_whole_turn(turn):
    angle = np.linspace(0, 3.3, 1000) * turn + 0.0001 * turn * wander()
    (found,) = jumps((angle + turn / 2) % turn - turn / 2)
    assert (found.guess, found.count) == (Guess.WRAP, 3)


def test_noise_switches_gears_and_goals_hold_no_jumps():
    random = np.random.default_rng(0)
    for seed in range(25):
        n = int(random.integers(100, 3000))
        signals = {
            "white noise": random.normal(size=n),
            "rounded noise": np.round(random.normal(size=n), 1),
            "heavy tails": random.laplace(size=n),
            "heavier tails": random.standard_t(4, size=n),
            "a switch": (wander(n, seed) > 0).astype(float),
            "a switch with noise": (np.arange(n) // 37 % 2) + 0.001 * random.normal(size=n),
            "a gear": np.clip(np.round(3 + 20 * wander(n, seed)), 1, 6),
            "a goal": np.repeat(random.normal(size=n // 50 + 1), 50)[:n],
            "a slow sensor": np.repeat(wander(n // 5 + 1, seed), 5)[:n],
            "rests and moves": np.cumsum(np.where(np.arange(n) // 60 % 2, 0.05, 1e-7) * random.normal(size=n)),
            "rounding at rest": 1.0 + 1e-16 * random.integers(0, 3, n) + 0.5 * (np.arange(n) == 50),
            "constant": np.ones(n),
        }
        for name, values in signals.items():
            assert jumps(values) == [], (name, seed)


def test_a_latched_stream_is_set_anew_at_times():
    a, b = wander(), wander(seed=1)
    b[500:] += 5
    streams = [stream_section("pose", ["quaternion.x"], TYPE, age) for age in (0.05, float("inf"))]
    contract = make_contract(observation=[streams[0], {**streams[1], "topic": "goal"}])
    assert find_jumps(np.arange(1000) * PERIOD_NS, np.column_stack([a, b]), np.ones(999, bool), contract) == []


def test_numbers_without_measure_are_looked_at_without_a_word():
    random = np.random.default_rng(0)
    assert jumps(random.choice([-1e308, 1e308, 0.0], 500), wander(500)) == []


def test_few_steps_tell_nothing():
    assert jumps(np.append(wander(20), 9.0)) == []
