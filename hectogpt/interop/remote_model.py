"""transformers' side of an exported model: its config, its cache and its model class.

`remote_code.py` puts this module at the end of the file that it assembles, behind the sources of the model's own parts.
There `read_settings` finds their classes.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from hectogpt.model.lm_head import LMHead
from hectogpt.model.parts import visible_keys
from hectogpt.model.transformer import Transformer

# transformers calls the cache `cache` from 5.20 on, `past_key_values` before.
CACHE = "cache" if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else "past_key_values"


class HectoGPTConfig(PretrainedConfig):
    """config.json. model: the model's settings, as `read_settings` takes them. head_rows: rows of the vocabulary head,
    if tokens that were never read in training share one. The sizes beside them are for programs that look for them
    under these names; the model is not built from them."""

    model_type = "hectogpt"
    keys_to_ignore_at_inference = [CACHE]  # noqa: RUF012  as transformers declares it

    def __init__(
        self,
        model: dict[str, Any] | None = None,
        head_rows: int | None = None,
        use_cache: bool = True,
        **others: Any,
    ) -> None:
        self.model, self.head_rows, self.use_cache = model or {}, head_rows, use_cache
        super().__init__(**others)


def read_settings(value: Any) -> Any:
    """A value of config.json: an object that names a type becomes a value of this file's class of that name."""
    if isinstance(value, list):
        return tuple(map(read_settings, value))
    if not isinstance(value, dict):
        return value
    inside = {name: read_settings(item) for name, item in value.items() if name != "type"}
    return globals()[value["type"]](**inside)


class LayerCache:
    """One layer's keys and values of the tokens so far, [batch, head, slot, d_head]."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def update(
        self, k: Float[Tensor, "batch head time d_head"], v: Float[Tensor, "batch head time d_head"]
    ) -> tuple[Float[Tensor, "batch head slot d_head"], Float[Tensor, "batch head slot d_head"]]:
        """Append k and v; return all keys and all values."""
        self.kept = [torch.cat(pair, dim=2) for pair in zip(self.kept, (k, v), strict=True)] if self.kept else [k, v]
        return self.kept[0], self.kept[1]


class TextCache:
    """What the model keeps of the tokens so far, one column a token; rows are padded where `text` is False. A call of
    the model is opened by `open`."""

    is_compileable = False
    is_croppable = False

    def __init__(self) -> None:
        self.layers: dict[int, LayerCache] = {}
        self.remembered: dict[object, Tensor] = {}
        self.appended: dict[object, Tensor] = {}
        self.ids: Int[Tensor, "batch slot"] | None = None
        self.text: Bool[Tensor, "batch slot"] | None = None
        self.dropped = 0  # columns at the beginning that no row's context reaches any more

    def begin(
        self, ids: Int[Tensor, "batch time"], text: Bool[Tensor, "batch slot"] | None
    ) -> Int[Tensor, "batch time"]:
        """Append the tokens of a call; return their positions. text: which of all columns are text (None: all)."""
        before = 0 if self.ids is None else self.ids.shape[1]
        new = torch.ones_like(ids, dtype=torch.bool) if text is None else text[:, -ids.shape[1] :]
        self.ids = ids if self.ids is None else torch.cat((self.ids, ids), dim=1)
        self.text = new if self.text is None else torch.cat((self.text, new), dim=1)
        self.key_positions = torch.where(self.text, self.text.long().cumsum(dim=1) - 1, -1)
        self.query_positions = self.key_positions[:, before:]
        plain = before == 0 and bool(self.text.all())
        self.visible = None if plain else visible_keys(self.query_positions, self.key_positions)[:, None]
        return self.query_positions.clamp(min=0)

    def layer(self, index: int) -> LayerCache:
        """What layer `index` needs during this call."""
        return self.layers.setdefault(index, LayerCache())

    def shift(self, key: object, x: Tensor, n: int) -> Tensor:
        """Rows of x [batch, time, ...] moved `n` later, after the rows that earlier calls left under this key; padding
        counts as zeros."""
        assert self.text is not None
        new = self.text[:, -x.shape[1] :]
        x = x if bool(new.all()) else x * new.reshape(*new.shape, *(1,) * (x.dim() - 2)).to(x.dtype)
        before = self.remembered[key] if key in self.remembered else x.new_zeros(x.shape[0], n, *x.shape[2:])
        joined = torch.cat((before, x), dim=1)
        self.remembered[key] = joined[:, -n:]
        return joined[:, : x.shape[1]]

    def append(self, key: object, x: Tensor) -> Tensor:
        """Rows of x [batch, time, ...] after all rows of earlier calls under this key: one for each column so far."""
        self.appended[key] = torch.cat((self.appended[key], x), dim=1) if key in self.appended else x
        return self.appended[key]

    def visible_so_far(self) -> Bool[Tensor, "batch time slot"]:
        """Which of the columns so far each token of this call may look at."""
        return visible_keys(self.query_positions, self.key_positions)

    # --- what generate asks of a cache ---

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns so far."""
        return self.dropped + (0 if self.ids is None else self.ids.shape[1])

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order; a row may come more than once."""
        for layer in self.layers.values():
            layer.kept = [kept[indices.to(kept.device)] for kept in layer.kept]
        for kept in (self.remembered, self.appended):
            kept.update({key: rows[indices.to(rows.device)] for key, rows in kept.items()})
        if self.ids is not None and self.text is not None:
            self.ids, self.text = self.ids[indices], self.text[indices]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """The same, for beam search."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row, the copies side by side."""
        if self.ids is not None:
            self.batch_select_indices(torch.arange(len(self.ids), device=self.ids.device).repeat_interleave(repeats))


class HectoGPTForCausalLM(PreTrainedModel, GenerationMixin):
    """The model with transformers' interface.

    Positions follow from the attention mask, so there are no position_ids. Past the context length L, `generate`
    conditions each new token on exactly the last L tokens, which are then computed anew.
    """

    config_class = HectoGPTConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _tied_weights_keys = {"model.lm_head.weight": "model.embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: HectoGPTConfig) -> None:
        super().__init__(config)
        with torch.device("cpu"):  # transformers builds on the meta device, where tables of constants have no numbers
            self.model = Transformer(read_settings(config.model))
            if config.head_rows is not None:
                tokens = torch.zeros(self.model.config.vocab_size, dtype=torch.long)
                self.model.lm_head._set_rows(tokens, config.head_rows, 0)
        # Tables of constants are not in the file, and from_pretrained replaces them by empty ones.
        self.constants = {
            id(module): {name: module._buffers[name] for name in module._non_persistent_buffers_set}
            for module in self.model.modules()
        }
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Fill what no file has given a module: its tables of constants, and the weights of a new model."""
        super()._init_weights(module)
        if isinstance(module, LMHead):
            nn.init.normal_(module.weight, std=0.02)
        for name, constant in self.constants.get(id(module), {}).items():
            if constant is not None:
                setattr(module, name, constant.to(getattr(module, name).device))

    def get_input_embeddings(self) -> nn.Module:
        """The table of the tokens' embeddings."""
        return self.model.embeddings

    def get_output_embeddings(self) -> nn.Module | None:
        """The vocabulary head, if it has a row for every token."""
        return self.model.lm_head if self.config.head_rows is None else None

    def forward(
        self,
        input_ids: Int[Tensor, "batch time"],
        attention_mask: Tensor | None = None,
        past_key_values: TextCache | None = None,
        cache: TextCache | None = None,
        labels: Int[Tensor, "batch time"] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast | tuple[Tensor, ...]:
        """Logits of the next token at each of the last `logits_to_keep` positions (0: at all), and with labels (which
        are shifted here) their mean cross entropy. attention_mask: 0 for padding; columns of earlier calls included."""
        unknown = ("position_ids", "inputs_embeds", "output_attentions", "output_hidden_states")
        if named := [name for name in unknown if others.get(name) is not None and others[name] is not False]:
            raise ValueError(f"this model takes no {' and no '.join(named)}")
        memory = cache if cache is not None else past_key_values
        if use_cache is None:
            use_cache = bool(self.config.use_cache) and not torch.is_grad_enabled()
        limit, text = self.model.config.context_length, None if attention_mask is None else attention_mask.bool()
        if memory is None and (use_cache or not (text is None or bool((text[:, 1:] <= text[:, :-1]).all()))):
            memory = TextCache()
        if memory is None:  # padding, if there is any, comes after the text, which does not see it
            ids = input_ids[:, -limit:] if logits_to_keep == 1 else input_ids
            logits = self._last_logits(ids, None, None, logits_to_keep)
        else:
            if torch.is_grad_enabled() and self.model.pointer is not None:
                raise ValueError("gradients need texts that are padded on the right, and use_cache=False")
            if memory.get_seq_length() == 0 and logits_to_keep == 1 and input_ids.shape[1] > limit:
                memory.dropped = input_ids.shape[1] - limit
                input_ids, text = input_ids[:, -limit:], None if text is None else text[:, -limit:]
            logits = self._continue(input_ids, text, memory, logits_to_keep)
        loss = None
        if labels is not None:
            count = {name: others[name] for name in ("num_items_in_batch",) if name in others}
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.model.config.vocab_size, **count)
        remembered: dict[str, Any] = {CACHE: memory if use_cache else None}
        output = CausalLMOutputWithPast(loss=loss, logits=logits, **remembered)
        return output.to_tuple() if return_dict is False else output

    def _last_logits(
        self, ids: Int[Tensor, "batch time"], positions: Tensor | None, memory: TextCache | None, n: int
    ) -> Float[Tensor, "batch rows vocab"]:
        """The model's logits at the last n positions (0: at all)."""
        if n == 1:
            return self.model.next_logits(ids, positions, memory)[:, None]
        return self.model(ids, positions, memory)[:, -n:]

    def _continue(
        self, ids: Int[Tensor, "batch time"], text: Bool[Tensor, "batch slot"] | None, memory: TextCache, n: int
    ) -> Float[Tensor, "batch rows vocab"]:
        """Logits of new tokens after those in the memory, at the last n of them (0: at all)."""
        limit = self.model.config.context_length
        positions = memory.begin(ids, text)
        long = (positions >= limit).any(dim=1)
        if not bool(long.any()):
            return self._last_logits(ids, positions, memory, n)
        if ids.shape[1] > 1:
            raise ValueError(f"a text has {int(positions.max()) + 1} tokens, the model's context {limit}")
        assert memory.ids is not None
        anew = self.model.next_logits(memory.ids[long][:, -limit:])[:, None]
        if bool(long.all()):
            return anew
        logits = self.model(ids, positions.clamp(max=limit - 1), memory)
        logits[long] = anew
        return logits

    def prepare_inputs_for_generation(
        self, input_ids: Int[Tensor, "batch slot"], attention_mask: Tensor | None = None, **others: Any
    ) -> dict[str, Any]:
        """The arguments of `forward` for the next token: the columns that the cache has not seen."""
        memory = others.get(CACHE)
        seen = 0 if memory is None else memory.get_seq_length()
        use_cache = bool(others.get("use_cache", True))
        options = {"attention_mask": attention_mask, "use_cache": use_cache, "logits_to_keep": 1}
        return {"input_ids": input_ids[:, seen:], CACHE: memory, **options}

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """False: the model makes its own cache."""
        return False
