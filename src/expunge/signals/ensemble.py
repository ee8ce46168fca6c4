# SPDX-License-Identifier: Apache-2.0
"""Several models that answer as one: the states of all side by side, and a head that joins what they say.

`score`, `generate` and whatever else reads a model through its body and its head read an ensemble in the same way.
What needs decoder blocks, such as probing or attention maps, has to look at the members.

Shape suffixes: B batch rows, T tokens, D hidden width, S members, C positions of a chunk, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from expunge.signals.head import Head, body, unwrap

#: The last two join weights: `average` adds the mean of all low-rank updates to the base, `union` puts the updates of
#: disjoint reserved weights beside each other. Each gives one plain model, not the predictor that joined answers are.
Aggregation = Literal["mean_probability", "mean_log_probability", "vote", "confidence", "average", "union"]
JOINED: tuple[Aggregation, ...] = ("mean_probability", "mean_log_probability", "vote", "confidence")


def aggregate(logp_SCV: Tensor, kind: Aggregation) -> Tensor:
    """Return log-probabilities of the members together, [C, V], nats; every row sums to 1 as probabilities.

    Args:
        logp_SCV: log-probabilities of each member.
        kind: `mean_probability`: the mixture; `mean_log_probability`: the product, renormalised; `vote`: every member
            has one voice for its arg max, and one further voice is spread evenly, so that no token is impossible;
            `confidence`: at each position the member whose best token is likeliest. Ties go to the lowest token id
            and the lowest member.

    Raises:
        ValueError: for what joins weights and not answers.
    """
    members, vocabulary = logp_SCV.shape[0], logp_SCV.shape[2]
    if kind == "mean_probability":
        return torch.logsumexp(logp_SCV, dim=0) - math.log(members)
    if kind == "mean_log_probability":
        return torch.log_softmax(logp_SCV.mean(dim=0), dim=1)
    if kind == "vote":
        votes_CV = torch.zeros_like(logp_SCV[0]).scatter_add_(
            1, logp_SCV.argmax(dim=2).T, torch.ones(logp_SCV.shape[1], members, device=logp_SCV.device)
        )
        return torch.log((votes_CV + 1 / vocabulary) / (members + 1))
    if kind == "confidence":
        chosen_C = logp_SCV.amax(dim=2).argmax(dim=0)
        return logp_SCV[chosen_C, torch.arange(logp_SCV.shape[1], device=logp_SCV.device)]
    raise ValueError(f"{kind!r} joins weights, not answers")


class EnsembleConfig(PretrainedConfig):  # type: ignore[misc]
    """What other code asks a model about itself: sizes of the answer, not of the members."""

    model_type = "expunge_ensemble"


class _Body(nn.Module):
    """The members side by side: models, or adapters by name on one frozen model."""

    def __init__(self, models: Sequence[nn.Module], adapters: Sequence[str]) -> None:
        super().__init__()
        self.members = nn.ModuleList(models)
        self.adapters = tuple(adapters)

    def each(self) -> Iterator[nn.Module]:
        """Yield every member, ready to run."""
        for adapter in self.adapters:
            cast(Any, self.members[0]).set_adapter(adapter)
            yield self.members[0]
        if not self.adapters:
            yield from self.members

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool = False
    ) -> BaseModelOutput:
        """Return the last hidden states of all members, [B, T, S D]."""
        del use_cache
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        states = [body(member, input_ids, mask) for member in self.each()]
        return BaseModelOutput(last_hidden_state=cast(Any, torch.cat(states, dim=2)))


class _JoinedHead(nn.Module):
    """From the states of all members to log-probabilities of the ensemble."""

    def __init__(self, heads: Sequence[Head], kind: Aggregation) -> None:
        super().__init__()
        self._heads, self.kind = list(heads), kind  # the members own these layers

    @property
    def weight(self) -> Tensor:
        """The projection of the first member: type and vocabulary are those of all."""
        return cast(Tensor, self._heads[0].projection.weight)

    def forward(self, states: Tensor) -> Tensor:
        """Return log-probabilities [..., V], float32, of states [..., S D]."""
        parts = states.flatten(0, -2).chunk(len(self._heads), dim=1)
        logp_SCV = torch.stack(
            [torch.log_softmax(head(part), dim=1) for head, part in zip(self._heads, parts, strict=True)]
        )
        return aggregate(logp_SCV, self.kind).view(*states.shape[:-1], -1)


class Ensemble(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Models of one vocabulary that answer as one causal language model; keeps no cache while generating.

    Args:
        models: the members, or the one model that carries all `adapters`.
        kind: how they answer together.
        adapters: names of PEFT adapters, one a member; empty if every member is a model of its own.

    Raises:
        ValueError: if there is no member, or vocabularies differ.
    """

    config_class = EnsembleConfig
    base_model_prefix = "body"
    _supports_sdpa = True

    def __init__(self, models: Sequence[nn.Module], kind: Aggregation, *, adapters: Sequence[str] = ()) -> None:
        inner = [unwrap(model).config.get_text_config() for model in models]
        if not inner or len({config.vocab_size for config in inner}) > 1:
            raise ValueError("an ensemble needs members, all of one vocabulary")
        first: Any = inner[0]
        members = len(adapters) or len(models)
        settings = EnsembleConfig(
            vocab_size=first.vocab_size, hidden_size=members * first.hidden_size, use_cache=False,
            num_hidden_layers=first.num_hidden_layers, max_position_embeddings=first.max_position_embeddings,
            pad_token_id=first.pad_token_id, eos_token_id=first.eos_token_id, bos_token_id=first.bos_token_id,
        )  # fmt: skip
        super().__init__(settings)
        self.body = _Body(models, adapters)
        heads = [Head(models[0])] * members if adapters else [Head(model) for model in models]
        self.head = _JoinedHead(heads, kind)
        # Part of the state, so that the same members joined in another way have another digest.
        self.register_buffer("aggregation", torch.tensor([JOINED.index(kind), members]))
        self.generation_config = GenerationConfig.from_model_config(settings)
        self.eval()

    def get_output_embeddings(self) -> nn.Module:
        """Return the layer that joins the answers."""
        return self.head

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **unused: Any
    ) -> dict[str, Any]:
        """Return what `forward` takes; transformers offers a cache as well."""
        del unused
        return {"input_ids": input_ids, "attention_mask": attention_mask, "logits_to_keep": 1}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        logits_to_keep: int = 0,
        return_dict: bool = True,
    ) -> CausalLMOutput:
        """Return log-probabilities as logits, [B, T, V] or those of the last `logits_to_keep` positions."""
        del return_dict  # always
        mask_BT = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        # Padding on the left goes to the right, where members of every family take it.
        time_T = torch.arange(input_ids.shape[1], device=input_ids.device)
        shift_B1 = mask_BT.argmax(dim=1, keepdim=True)
        there_BT, back_BT = (time_T + shift_B1) % len(time_T), (time_T - shift_B1) % len(time_T)
        states_BTD = self.body(input_ids.gather(1, there_BT), mask_BT.gather(1, there_BT)).last_hidden_state
        states_BTD = states_BTD.gather(1, back_BT[:, :, None].expand_as(states_BTD))
        return CausalLMOutput(logits=self.head(states_BTD[:, -logits_to_keep:]))
