"""A flow map whose network computes in another type."""

from typing import Any

import keras

from keras_imm.flow_map import FlowMap

_HALF = ("mixed_float16", "mixed_bfloat16", "bfloat16", "float16")
_OF_QUANTIZED = "_from_"  # in Keras's names of their policies: int8_from_float32
# For float16 too: what Keras computes in float32 instead, on a CPU, is float16 alone.
_POLICIES = {"float16": "mixed_bfloat16", "float32": "float32"}


def check(flow: FlowMap, runtime: str) -> None:
    """Raises ValueError unless it computes in float32 or half precision alone."""
    for name in _policies(keras.saving.serialize_keras_object(flow)):
        if name not in ("float32", *_HALF):
            raise ValueError(
                "`model` must have layers of the policies float32, "
                f"{', '.join(_HALF)} to become {runtime}. Received: one of {name!r}"
            )


def check_not_quantized(flow: FlowMap, runtime: str) -> None:
    """Raises ValueError if layers are quantized, whose operations it has not."""
    for name in _policies(keras.saving.serialize_keras_object(flow)):
        if _OF_QUANTIZED in name:
            raise ValueError(
                f"`model` must not be quantized to become {runtime}. "
                f"Received: one with layers of the policy {name!r}"
            )


def computing_in(flow: FlowMap, dtype: str) -> FlowMap:
    """The flow map, or one with fresh weights and other policies.

    Args:
        flow: A built flow map.
        dtype: "float32", or "float16" for a network in mixed_bfloat16, whose graph's
            bfloat16 is to be made float16. Where some layers compute in half precision
            already, those of float32 stay so.
    """
    config = keras.saving.serialize_keras_object(flow)
    half = {name for name in _policies(config) if name in _HALF}
    if not half and dtype == "float32":
        return flow
    config = _with_policy(config, half or {"float32"}, _POLICIES[dtype])
    other = keras.saving.deserialize_keras_object(config, safe_mode=False)
    other.build(flow.data_shape)
    return other


def _policies(config: Any) -> list[str]:
    """Names of all policies in a config."""
    if isinstance(config, dict):
        if _is_policy(config):
            return [_name(config)]
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        return [name for one in config for name in _policies(one)]
    return []


def _with_policy(config: Any, replaced: set[str], policy: str) -> Any:
    """The config with a policy in the place of others."""
    if isinstance(config, dict):
        if _is_policy(config) and _name(config) in replaced:
            return keras.dtype_policies.serialize(keras.DTypePolicy(policy))
        return {k: _with_policy(one, replaced, policy) for k, one in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(_with_policy(one, replaced, policy) for one in config)
    return config


def _is_policy(config: dict) -> bool:
    return str(config.get("class_name", "")).endswith("DTypePolicy")


def _name(config: dict) -> str:
    policy = config["config"]
    if "name" in policy:
        return policy["name"]
    return f"{policy.get('mode')}{_OF_QUANTIZED}{policy.get('source_name')}"
