# SPDX-License-Identifier: Apache-2.0
"""Exported policies: the same numbers as with torch, in the contract's units, without torch in the process."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from spc_core.alignment.streaming import Transition
from spc_core.deploy.checkpoint import Checkpoint, load_checkpoint
from spc_core.deploy.checkpoint_files import CheckpointError
from spc_core.deploy.context_tracker import ContextTracker
from spc_core.deploy.deployable import Policy, load_deployed
from spc_core.method.config import ConfigError, PlannerConfig
from spc_core.method.normalize import Stats
from spc_ros.cli import main
from support.method_options import configured
from support.paths import ROOT
from support.plain_votes import without_alarms
from support.random_checkpoint import TINY, random_task_belief, random_vote_model


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnx", reason="onnx is not installed: pip install 'spc_ros[onnx]'")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'spc_ros[onnx]'")
    out = tmp_path_factory.mktemp("onnx") / "exported"
    assert main(["export", str(tiny_checkpoint), "--format", "onnx", "--out", str(out)]) == 0
    return out


def transitions(count: int) -> list[Transition]:
    """Some commands exceed the limits, and count as the limit."""
    random = np.random.default_rng(1)
    rows = random.normal(size=(count, 4)), random.uniform(-4, 4, (count, 2)), random.normal(size=(count, 4))
    return [Transition(t, o, a, float(o[0]), n) for t, (o, a, n) in enumerate(zip(*rows, strict=True))]


def assert_alike(checkpoint: Checkpoint, folder: Path) -> None:
    deployed = load_deployed(folder)
    original, export = ContextTracker(checkpoint), ContextTracker(deployed)
    assert original.judging == export.judging
    actors = Policy(checkpoint), Policy(deployed)
    for transition in transitions(50):
        assert original.update(transition) and export.update(transition)
        np.testing.assert_allclose(export.context, original.context, atol=1e-5)
        actions = [actor.act(transition.observation, original.context) for actor in actors]
        np.testing.assert_allclose(actions[1], actions[0], atol=1e-5)
    assert np.ptp(original.context) > 0.01, "an encoder with constant output would agree with anything"
    np.testing.assert_allclose(export.uncertainty, original.uncertainty, atol=1e-5)
    original.mode = export.mode = "collect"
    np.testing.assert_array_equal(export.context, original.context)


def test_export_acts_and_adapts_as_the_checkpoint(tiny_checkpoint: Path, exported: Path) -> None:
    assert_alike(load_checkpoint(tiny_checkpoint), exported)
    card = json.loads((exported / "export.json").read_text())
    assert card["observation"] == list(load_checkpoint(tiny_checkpoint).contract.observation_names)
    assert card["action"] == ["effort.shoulder", "effort.elbow"] and card["opset"] == 18


@pytest.mark.parametrize(
    "method",
    [
        "spc_simnorm",
        "spc_continuous",
        "focal",
        "spc",
        "spc_paper votes=precision policy_sees=both",
        "spc_paper policy_sees=observation",
    ],
)
def test_every_kind_of_latent_is_exported(method: str, tiny_checkpoint: Path, exported: Path, tmp_path: Path) -> None:
    """Statistics far from zero and one, in which a missing normalisation would show."""
    import torch

    from spc_core.deploy.onnx_checkpoint import export_onnx
    from spc_core.method.agent import Agent

    torch.manual_seed(1)
    base = load_checkpoint(tiny_checkpoint)
    config = dataclasses.replace(configured(method), model=dataclasses.replace(TINY, continuous_dim=16))
    agent = Agent(4, 2, [{}, {}], config).eval().requires_grad_(False)
    for weights in agent.parameters():
        weights.normal_(0, 0.5)
    four = np.float32([1000, -2, 0.5, 30])
    stats = Stats(four, abs(four) / 3 + 0.1, abs(four) / 50, -3, 2.5, base.stats.action_low, base.stats.action_high)
    belief = random_task_belief(agent, stats) if config.method.task_belief else None
    votes = without_alarms(random_vote_model(6, agent.context_dim)) if belief else None
    checkpoint = dataclasses.replace(
        base, agent=agent, config=config, stats=stats, task_belief=belief, vote_model=votes
    )
    assert (ContextTracker(checkpoint).judging == "on") == (method == "spc")
    assert_alike(checkpoint, export_onnx(checkpoint, tmp_path / method))


def test_a_process_without_torch_acts(tiny_checkpoint: Path, exported: Path) -> None:
    script = f"""
        import sys
        sys.modules["torch"] = None  # an import of torch raises ImportError
        import numpy as np
        import spc_ros.nodes.context_encoder, spc_ros.nodes.policy
        from spc_core.deploy.checkpoint_files import CheckpointError
        from spc_core.deploy.context_tracker import ContextTracker
        from spc_core.deploy.deployable import Policy, load_deployed
        deployed = load_deployed({str(exported)!r})
        print(Policy(deployed).act(np.full(4, 0.3), ContextTracker(deployed).context).tolist())
        try:
            load_deployed({str(tiny_checkpoint)!r})
        except CheckpointError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    action, refusal = done.stdout.splitlines()
    z = np.zeros(TINY.context_dim)
    np.testing.assert_allclose(
        json.loads(action), Policy(load_checkpoint(tiny_checkpoint)).act(np.full(4, 0.3), z), atol=1e-5
    )
    assert "needs torch, which is not installed here" in refusal and "--format onnx" in refusal


def test_errors_name_the_cause(tiny_checkpoint: Path, exported: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    for name in exported.iterdir():
        (tmp_path / name.name).write_bytes(name.read_bytes())
    (tmp_path / "policy.onnx").write_bytes(b"no graph")
    with pytest.raises(CheckpointError, match="policy.onnx: corrupt .*export it again"):
        load_deployed(tmp_path)
    (tmp_path / "policy.onnx").unlink()
    with pytest.raises(CheckpointError, match="policy.onnx: missing"):
        load_deployed(tmp_path)
    with pytest.raises(CheckpointError, match="device is 'cuda'"):
        load_deployed(exported, "cuda")
    with pytest.raises(ConfigError, match="planning needs the world model"):
        Policy(load_deployed(exported), PlannerConfig())
    assert main(["export", str(tiny_checkpoint), "--format", "onnx", "--out", str(exported)]) == 1
    assert "exists already" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(CheckpointError, match="needs onnxruntime.*pip install onnxruntime"):
        load_deployed(exported)


def test_the_two_kinds_of_export_do_not_mix(tiny_checkpoint: Path, tmp_path: Path, capsys) -> None:
    """Each format refuses the other's source by its kind."""
    assert main(["export", str(tiny_checkpoint), "--format", "lerobot", "--out", str(tmp_path / "a")]) == 1
    assert "is a training run; use --format onnx" in capsys.readouterr().err
    assert main(["export", str(tmp_path), "--format", "onnx", "--out", str(tmp_path / "b")]) == 1
    assert "not a checkpoint" in capsys.readouterr().err


def test_without_onnx_the_extra_is_named(tiny_checkpoint: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["export", str(tiny_checkpoint), "--format", "onnx", "--out", str(tmp_path / "out")]) == 1
    assert "exporting needs onnx" in capsys.readouterr().err and not (tmp_path / "out").exists()
