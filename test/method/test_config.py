# SPDX-License-Identifier: Apache-2.0
"""Presets, methods and flags override each other in order; invalid settings are refused by name."""

import dataclasses

import pytest
import yaml

from spc_core.method.config import ConfigError, TrainConfig, load_config, method_name
from spc_core.system.config_files import ConfigFileError, find_config

METHODS = sorted(file.stem for file in find_config("methods", "spc").parent.glob("*.yaml"))
PRESETS = sorted(file.stem for file in find_config("train", "small").parent.glob("*.yaml"))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", METHODS)
def test_every_shipped_method_fits_every_shipped_preset(preset, method):
    config = load_config(preset, method)
    assert config.method.name == method


def test_the_papers_spc_is_what_is_not_set():
    assert load_config("paper", "spc_paper") == load_config("paper") == TrainConfig()


def test_a_preset_overrides_the_method_beneath_it_alone(tmp_path):
    (tmp_path / "own.yaml").write_text("method: {votes: mean}\nloss: {one_step_weight: 2.0}\n")
    spc, own = load_config("paper", "spc"), load_config(str(tmp_path / "own.yaml"), beneath="spc")
    assert own.method == dataclasses.replace(spc.method, votes="mean")
    assert own.loss == dataclasses.replace(spc.loss, one_step_weight=2.0)


def test_the_papers_spc_overrides_every_option_of_a_preset(tmp_path):
    """Its name stays for what it is, whatever `spc` and the presets become."""
    preset = {
        "method": {"votes": "precision", "policy_sees": "both", "collect": "nearest"},
        "loss": {"actor_average_rate": 0.1, "action_gradient": 1.0, "one_step_weight": 1.0, "imagined_share": 0.5},
    }
    (tmp_path / "options.yaml").write_text(yaml.safe_dump(preset))
    paper = load_config(str(tmp_path / "options.yaml"), "spc_paper")
    assert paper == TrainConfig()
    dora = load_config(str(tmp_path / "options.yaml"), "dora")
    assert dora.method.votes == "precision" and dora.loss.actor_average_rate == 0.1, "and rivals take them"


def test_a_method_overrides_the_preset_and_flags_override_both():
    assert load_config("small", "focal", contexts_per_task=2, model={"groups": 8}) == dataclasses.replace(
        load_config("small"),
        method=load_config("paper", "focal").method,
        contexts_per_task=2,
        model=dataclasses.replace(load_config("small").model, groups=8),
    )


def test_quick_is_small_with_half_the_updates():
    small = load_config("small")
    assert load_config("quick") == dataclasses.replace(small, updates=small.updates // 2)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"latnt": "raw"}, r"method.latnt is not a setting \(did you mean 'latent'\?\)"),
        (
            {"latent": "discret"},
            r"method.latent is 'discret' \(did you mean 'discrete'\?\); use one of: discrete, simnorm",
        ),
        ({"latent": "raw"}, "'cross_entropy' does not fit latent 'raw'; use one of: mse, none"),
        ({"latent": "continuous"}, "'cross_entropy' does not fit latent 'continuous'"),
        ({"hypothesis_s": 0.0}, "method.hypothesis_s is 0.0; it must be finite and above 0"),
        ({"collect": "nearst"}, r"method.collect is 'nearst' .did you mean 'nearest'\?.; use one of: means, nearest"),
        ({"context": "oracle"}, "'oracle' is not learnt, so contrast must be none"),
        ({"context": "none", "contrast": "none", "context_club": 0.5}, "context_club 0"),
        ({"latent": "raw", "consistency": "none", "contrast": "none"}, "nothing to learn from; set method.contrast"),
    ],
)
def test_incompatible_choices_are_refused(values, message, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"method": values}))
    with pytest.raises(ConfigError, match=message):
        load_config("small", str(file))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"contexts_per_task": 3}, r"windows_per_task \(4\) must be a multiple of contexts_per_task \(3\)"),
        ({"precision": "fp16"}, "precision is 'fp16'; use auto, fp32 or bf16"),
        ({"loss": {"actor_average_rate": 1.5}}, "loss.actor_average_rate is 1.5; it must be from 0 to 1"),
        ({"loss": {"action_gradient": -1.0}}, "loss.action_gradient is -1.0; it must be finite and not negative"),
        ({"evaluate_every": -1}, "evaluate_every is -1; it must be at least 0"),
        ({"model": {"continuous_dim": 60}}, r"continuous_dim \(60\) must be a multiple of simplex_size \(8\)"),
    ],
)
def test_invalid_values_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        load_config("small", **values)


def test_a_method_takes_options_on_top_and_their_name(tmp_path):
    dora, shared = load_config("quick", "dora"), load_config("quick", "dora+shared")
    assert shared.method == dataclasses.replace(dora.method, name="dora+shared", votes="precision", collect="nearest")
    assert shared.loss == dataclasses.replace(dora.loss, actor_average_rate=0.005, action_gradient=4.0)
    own = tmp_path / "a+b" / "own.yaml"
    own.parent.mkdir()
    own.write_text("method: {name: mine}\n")
    assert (load_config("quick", str(own)).method.name, method_name(str(own))) == ("mine", "own")
    assert (load_config("quick", f"{own}+shared").method.name, method_name(f"{own}+shared")) == (
        "mine+shared",
        "own+shared",
    )
    with pytest.raises(ConfigFileError, match=r"no options file is called 'shard' \(did you mean 'shared'\?\)"):
        load_config("quick", "dora+shard")


@pytest.mark.parametrize("method", METHODS)
def test_the_shared_options_fit_every_method(method):
    assert load_config("small", f"{method}+shared").loss.action_gradient == 4.0
