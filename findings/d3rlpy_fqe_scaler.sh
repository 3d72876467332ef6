#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# d3rlpy 2.8.1 with torch 2.13.0 (Python 3.11): fitted Q evaluation of an algorithm that has an observation scaler.
#
# Guess: FQE(algo, FQEConfig()), as its documentation writes it, is worth what algo.predict() does, scaled observations
#   and all.
# Seen: it asks the network behind the scaler and gives it the observations as they are, unless FQEConfig has the same
#   observation_scaler. No warning is given. Here the policy turns left where it is evaluated as turning right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --disable-pip-version-check install -qq torch==2.13.0
"$folder/venv/bin/pip" --disable-pip-version-check install -qq d3rlpy==2.8.1 torch==2.13.0
cat > "$folder/run.py" <<'PY'
import warnings

import d3rlpy
import numpy as np

d3rlpy.seed(0)
rng = np.random.default_rng(0)
quiet = {"n_steps_per_epoch": 500, "show_progress": False, "logger_adapter": d3rlpy.logging.NoopAdapterFactory()}
scaler = d3rlpy.preprocessing.StandardObservationScaler(mean=np.array([10.0]), std=np.array([1.0]))


def episodes(observations, actions, rewards):  # of two steps each
    ends = np.tile([0.0, 1.0], len(rewards))
    return d3rlpy.dataset.MDPDataset(
        observations.reshape(-1, 1).astype(np.float32), actions.reshape(-1, 1).astype(np.float32), rewards.ravel(), ends
    )


# A policy that does 0.8 where it sees 11 and -0.8 where it sees 9.
seen = rng.choice([9.0, 11.0], (500, 2))
policy = d3rlpy.algos.BCConfig(learning_rate=1e-3, observation_scaler=scaler).create()
policy.fit(episodes(seen, 0.8 * (seen - 10), np.zeros((500, 2))), n_steps=500, **quiet)
does = float(policy.predict(np.array([[9.0]], np.float32))[0, 0])

# Recordings of random actions, which see 11, then 9. The second action is the reward: the policy earns what it does at 9.
acted = rng.uniform(-1, 1, (500, 2))
recorded = episodes(np.tile([11.0, 9.0], (500, 1)), acted, acted * [0, 1])
print(f"at 9 the policy does {does:.1f}, so it is worth {0.99 * does:.1f}")
for name, own in (("FQEConfig()", {}), ("FQEConfig(observation_scaler=...)", {"observation_scaler": scaler})):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = d3rlpy.ope.FQEConfig(learning_rate=1e-3, **own)
        fqe = d3rlpy.ope.FQE(algo=policy, config=config)
        fqe.fit(recorded, n_steps=1500, **quiet)
    first = np.array([[11.0]], np.float32)
    value = float(fqe.predict_value(first, policy.predict(first))[0])
    said = [w for w in caught if "scale" in str(w.message)]
    print(f"{name}: that is its value {abs(value - 0.99 * does) < 0.2}, warnings about scaling {len(said)}; {value:.1f}")
PY
"$folder/venv/bin/python" "$folder/run.py" 2>/dev/null | grep -v " \[" | tee "$folder/output"
expected="at 9 the policy does -0.8, so it is worth -0.8
FQEConfig(): that is its value False, warnings about scaling 0
FQEConfig(observation_scaler=...): that is its value True, warnings about scaling 0"
[ "$(sed 's/; .*//' "$folder/output")" = "$expected" ] || { echo "changed: expected $expected"; exit 1; }
