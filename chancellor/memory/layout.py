"""The sizes in a config.json that memory depends on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

__all__ = ["Layout"]


@dataclass(frozen=True, slots=True)
class Layout:
    """A language model's sizes."""

    layers: int
    attention_layers: int
    """Layers with a KV cache: those of hybrid models with a state of a fixed size are not among them."""
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    experts: int
    """Experts of a layer; 0 where it is dense."""
    latent: int
    """Values that a token takes in a layer's KV cache where heads are compressed into one (MLA), else 0."""
    tied: bool
    """Whether the output layer is the embedding."""
    context: int | None
    """Most tokens that the model was trained for."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Read a config.json; what it leaves out is what is usual."""
        text = config.get("text_config")
        config = text if isinstance(text, Mapping) else config

        def number(*names: str, default: int = 0) -> int:
            return next((int(config[name]) for name in names if isinstance(config.get(name), int | float)), default)

        layers = number("num_hidden_layers", "n_layer", "num_layers")
        kinds = config.get("layer_types")
        hidden = number("hidden_size", "n_embd", "d_model")
        heads = number("num_attention_heads", "n_head", default=1) or 1
        experts = number("num_local_experts", "num_experts", "n_routed_experts")
        intermediate = number("intermediate_size", "n_inner", default=4 * hidden)
        latent = number("kv_lora_rank")
        return cls(
            layers=layers,
            attention_layers=sum("linear" not in str(kind) for kind in kinds) if isinstance(kinds, list) else layers,
            hidden=hidden,
            intermediate=number("moe_intermediate_size", default=intermediate) if experts else intermediate,
            heads=heads,
            kv_heads=number("num_key_value_heads", default=heads) or heads,
            head_dim=number("head_dim") or hidden // heads,
            vocabulary=number("vocab_size"),
            experts=experts,
            latent=latent + number("qk_rope_head_dim") if latent else 0,
            tied=bool(config.get("tie_word_embeddings", True)),
            context=number("max_position_embeddings", "n_positions") or None,
        )

    def token_bytes(self, width: int, ranks: int = 1) -> int:
        """Return the bytes of the KV cache for one token on one rank, an upper bound where layers slide a window.

        Args:
            width: bytes of a value.
            ranks: GPUs that share the heads; each has at least one, and all of a compressed cache.
        """
        if self.latent:
            return self.attention_layers * self.latent * width
        return 2 * self.attention_layers * -(-self.kv_heads // ranks) * self.head_dim * width

    def linear_weights(self) -> int:
        """Return the number of weights in the linear layers, but for the output layer and for experts."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + (0 if self.experts else 3 * self.hidden * self.intermediate))

    def expert_weights(self) -> int:
        """Return the number of weights in experts."""
        return self.layers * self.experts * 3 * self.hidden * self.intermediate
