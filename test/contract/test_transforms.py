# SPDX-License-Identifier: Apache-2.0
"""Named transforms of observed fields: the maths by hand, and rows one by one as rows together."""

from __future__ import annotations

import math

import numpy as np
import pytest

from spc_core.contract.transforms import Field, FieldTransforms

MS = 1_000_000


def apply(field: Field, rows: list[list[float]], t_ns: list[int] | None = None, max_age_s: float = 1.0) -> np.ndarray:
    times = np.array(t_ns if t_ns is not None else range(len(rows)), np.int64)
    return FieldTransforms([field], max_age_s)(times, np.array(rows, float))


def test_a_plain_field_is_left_alone():
    values = np.array([[1.0, np.nan]])
    assert FieldTransforms([Field("a"), Field("b")], 1.0)(np.array([0]), values) is values


def test_scale_comes_before_offset_and_both_before_the_clip():
    field = Field("x", scale=2.0, offset=1.0, clip=(-3.0, 5.0))
    assert apply(field, [[1.0], [3.0], [-4.0], [np.nan]]).tolist()[:3] == [[3.0], [5.0], [-3.0]]
    assert np.isnan(apply(field, [[np.nan]])).all()


@pytest.mark.parametrize(
    ("angle", "wrapped"),
    [(0, 0), (math.pi, -math.pi), (-math.pi, -math.pi), (1.5 * math.pi, -math.pi / 2), (7, 7 - 2 * math.pi)],
)
def test_wrap_gives_angles_from_minus_pi_to_pi(angle, wrapped):
    assert apply(Field("a", "wrap"), [[angle]])[0, 0] == pytest.approx(wrapped, abs=1e-12)


def test_sin_cos_takes_degrees_when_told_their_scale():
    field = Field("a", "sin_cos", scale=math.pi / 180)
    np.testing.assert_allclose(apply(field, [[30.0], [180.0]]), [[0.5, math.sqrt(3) / 2], [0.0, -1.0]], atol=1e-12)
    assert field.outputs == ("a.sin", "a.cos")


def test_quaternions_give_yaw_and_two_columns_of_the_rotation():
    half = math.sqrt(0.5)
    about_z = [0.0, 0.0, half, half]  # 90 degrees: x axis to y, y axis to -x
    assert apply(Field("q", "yaw"), [about_z])[0, 0] == pytest.approx(math.pi / 2)
    np.testing.assert_allclose(apply(Field("q", "rotation_6d"), [about_z]), [[0, 1, 0, -1, 0, 0]], atol=1e-12)
    about_x = [half, 0.0, 0.0, half]  # y axis to z
    np.testing.assert_allclose(apply(Field("q", "rotation_6d"), [about_x]), [[1, 0, 0, 0, 0, 1]], atol=1e-12)


def test_a_quaternion_of_another_length_is_normalised_and_one_of_length_zero_is_no_rotation():
    np.testing.assert_allclose(apply(Field("q", "yaw"), [[0, 0, 3.0, 3.0]]), [[math.pi / 2]])
    assert np.isnan(apply(Field("q", "rotation_6d"), [[0.0, 0.0, 0.0, 0.0]])).all()


def test_derivative_is_per_second_and_unknown_at_first_and_after_a_pause():
    rows = [[1.0], [1.5], [1.0], [9.0]]
    rates = apply(Field("x", "derivative"), rows, [0, 10 * MS, 30 * MS, 131 * MS], max_age_s=0.1)[:, 0]
    assert np.isnan(rates[[0, 3]]).all()
    np.testing.assert_allclose(rates[1:3], [50.0, -25.0])


def test_derivative_leaves_late_samples_out_and_starts_again_after_a_clock_jump():
    times = [100 * MS, 90 * MS, 100 * MS, 120 * MS, 120 * MS - 600 * MS, 120 * MS - 590 * MS]
    rates = apply(Field("x", "derivative"), [[0.0], [7.0], [8.0], [1.0], [5.0], [5.1]], times)[:, 0]
    assert np.isnan(rates[[0, 1, 2, 4]]).all()
    np.testing.assert_allclose(rates[[3, 5]], [50.0, 10.0])


@pytest.mark.parametrize("seed", range(20))
def test_rows_one_by_one_give_what_they_give_together(seed):
    random = np.random.default_rng(seed)
    fields = [
        Field("a", "sin_cos", scale=0.1),
        Field("q", "rotation_6d"),
        Field("b", "derivative", clip=(-9, 9)),
        Field("q", "yaw"),
        Field("c", "wrap", offset=0.3),
        Field("d"),
    ]
    n = 60
    values = random.normal(size=(n, sum(len(field.inputs) for field in fields)))
    values[random.random(values.shape) < 0.02] = np.nan
    times = np.cumsum(random.integers(1, 30, n)) * MS
    if seed % 2:
        late = random.integers(1, n, 6)
        times[late] -= random.choice([5, 40, 700], 6) * MS
    one_by_one, blocks = FieldTransforms(fields, 0.025), FieldTransforms(fields, 0.025)
    rows = np.concatenate([one_by_one(times[i : i + 1], values[i : i + 1]) for i in range(n)])
    cuts = [0, *sorted(random.integers(0, n, 3).tolist()), n]
    parts = [blocks(times[a:b], values[a:b]) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
    np.testing.assert_array_equal(np.concatenate(parts), rows)
