"""GPT-2, from the inside out: read this file from top to bottom and you have read the whole model.

A language model gives every possible next token a probability, given the tokens so far:

    p(x_1 ... x_n) = prod_t p(x_t | x_1 ... x_{t-1})

One network computes all the factors at once. Each token becomes a vector of `d_model` numbers, its place in the
*residual stream*. A block adds to that stream what two parts have to say: attention, which moves information from
earlier tokens to later ones, and an MLP, which works on each token alone. After the last block the stream is read
out as one score (*logit*) per word of the vocabulary. That is all, in this order:

    1  ModelConfig       five numbers fix every shape
    2  MLP               what one token does by itself       (GELU is its bend)
    3  CausalAttention   how tokens listen to earlier tokens
    4  DecoderBlock      the two parts around one residual stream
    5  Transformer       vectors in, blocks, logits out; then generation, loss, and OpenAI's weights

Shapes are written as jaxtyping annotations, such as Float[Tensor, "batch seq d_model"]; the axes are

    batch      independent rows, which never see each other
    seq        positions in a row, 0-based, at most `context_length`
    d_model    width of the residual stream
    head       attention heads, each of width d_attention = d_model / n_heads
    vocab      entries of the vocabulary

This is written to be read, not to be fast. `hectogpt assignment` leaves out the code from a comment "exercise" to the
end of the function, for students to write. Papers: attention 1706.03762, GELU 1606.08415, layer norm 1607.06450, norm
before each part 2002.04745, and Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (GPT-2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

INIT_STD = 0.02  # standard deviation of GPT-2's initial weights
LAYER_NORM_EPS = 1e-5  # GPT-2's; a wrong value shows only on small activations


# ----------------------------------------------------------------------------------------------------------------
# 1  The configuration
# ----------------------------------------------------------------------------------------------------------------


@dataclass
class ModelConfig:
    """Five numbers fix every shape of the model. GPT-2 small is (768, 12, 12, 1024, 50257)."""

    d_model: int  # width of the residual stream; a multiple of n_heads
    n_heads: int  # attention heads per block
    n_layers: int  # blocks, one after the other
    context_length: int  # the most positions that the model can see at once
    vocab_size: int  # tokens in the vocabulary


# ----------------------------------------------------------------------------------------------------------------
# 2  The MLP: what one token does by itself
# ----------------------------------------------------------------------------------------------------------------


class GELU(nn.Module):
    """The Gaussian error linear unit in its tanh form (equation 1), for any shape.

    The exact unit is x * Phi(x), with Phi the normal distribution function: it keeps x where x is large, drops it
    where it is very negative, and is smooth in between. GPT-2 was trained with the approximation

        (1)   gelu(x) = 0.5 x (1 + tanh( sqrt(2 / pi) (x + 0.044715 x^3) ))

    It differs from the exact one (`nn.GELU()`, by erf) by up to 5e-4: too little for a loose test, enough to
    change what OpenAI's weights compute.
    """

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        # exercise: gelu
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class MLP(nn.Module):
    """Widen, bend, narrow: the same at every position, without looking at other positions.

        (2)   mlp(x) = W_2 gelu(W_1 x + b_1) + b_2        W_1: d_model -> 4 d_model,   W_2: 4 d_model -> d_model

    One reading: each of the 4 d_model hidden units looks for a direction in x (a row of W_1) and, where it finds
    it, writes another (a column of W_2) into the residual stream.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.d_model, 4 * config.d_model)
        self.gelu = GELU()
        self.fc2 = nn.Linear(4 * config.d_model, config.d_model)

    def forward(self, x: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq d_model"]:
        # exercise: mlp
        return self.fc2(self.gelu(self.fc1(x)))


# ----------------------------------------------------------------------------------------------------------------
# 3  Causal self-attention: how tokens listen to earlier tokens
# ----------------------------------------------------------------------------------------------------------------


class CausalAttention(nn.Module):
    """Every position asks a question (query), and takes a weighted mean of what earlier ones offer (value).

        (3)   q = W_q x,   k = W_k x,   v = W_v x           (each with a bias), cut into n_heads pieces
        (4)   score[i, j] = q[i] . k[j] / sqrt(d_attention)       how well key j answers query i
        (5)   pattern[i, :] = softmax_j( score[i, j] + mask[i, j] )       mask = 0 for j <= i, -inf for j > i
        (6)   z[i] = sum_j pattern[i, j] v[j]
        (7)   attention(x) = W_o concat_heads(z)                  (with a bias)

    Why divide by sqrt(d_attention): a dot product of d independent terms of size one has standard deviation
    sqrt(d). Undivided, the softmax of a wide head would start out saturated, with almost no gradient.
    """

    causal_mask: Float[Tensor, "1 1 context context"]

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.d_model % config.n_heads != 0:
            raise ValueError(f"d_model = {config.d_model} is not a multiple of n_heads = {config.n_heads}")
        self.n_heads = config.n_heads
        self.d_attention = config.d_model // config.n_heads  # width of one head

        self.W_k = nn.Linear(config.d_model, config.d_model)
        self.W_q = nn.Linear(config.d_model, config.d_model)
        self.W_v = nn.Linear(config.d_model, config.d_model)
        self.W_o = nn.Linear(config.d_model, config.d_model)

        # 0 on and below the diagonal, -inf above it. Really -inf: a mere -1e4 is outweighed by large scores, and
        # then the future leaks. No row is all -inf (its softmax would be NaN): each position sees itself.
        # A buffer follows the module to its device and dtype. It is not persistent, so it stays out of the state dict,
        # and checkpoints from other programs, which have no mask, load strictly.
        future = torch.full((config.context_length, config.context_length), -math.inf).triu(diagonal=1)
        self.register_buffer("causal_mask", rearrange(future, "query key -> 1 1 query key"), persistent=False)

    def forward(self, x: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq d_model"]:
        # exercise: attention
        seq = x.shape[1]

        # Step 1, equation (3): project, then cut d_model into heads. Head h owns the h-th run of d_attention columns.
        q, k, v = (
            rearrange(project(x), "batch seq (head d) -> batch head seq d", head=self.n_heads)
            for project in (self.W_q, self.W_k, self.W_v)
        )

        # Step 2, equation (4): every query against every key.
        scores = einsum(q, k, "batch head query d, batch head key d -> batch head query key")
        scores = scores / math.sqrt(self.d_attention)

        # Step 3, equation (5): hide the future, then normalise over the keys (the last axis).
        pattern = torch.softmax(scores + self.causal_mask[:, :, :seq, :seq], dim=-1)

        # Step 4, equation (6): each query's mean of the values it attends to.
        z = einsum(pattern, v, "batch head query key, batch head key d -> batch head query d")

        # Step 5, equation (7): put the heads side by side in the order they were cut, and mix them.
        return self.W_o(rearrange(z, "batch head seq d -> batch seq (head d)"))


# ----------------------------------------------------------------------------------------------------------------
# 4  The block: two parts around one residual stream
# ----------------------------------------------------------------------------------------------------------------


class DecoderBlock(nn.Module):
    """Attention, then the MLP; each reads a normalised copy of the stream and adds its answer to it.

        (8)   norm(x) = gain * (x - mean(x)) / sqrt(var(x) + eps) + bias      over d_model, at each position alone
        (9)   x <- x + attention(pre_layer_norm(x))
        (10)  x <- x + mlp(post_layer_norm(x))

    Mind the names: *both* norms come before their part ("pre-norm"). `post_layer_norm` is the norm of the MLP; the name
    means that it comes after attention. When freshly initialised, the two norms are equal (gain 1, bias 0), so only
    trained weights reveal a swap.

    The sum in (9) and (10) is why depth works: the stream runs from the embeddings to the logits untouched by any
    norm or matrix, and so does the gradient on its way back.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.mlp = MLP(config)
        self.attention = CausalAttention(config)
        self.pre_layer_norm = nn.LayerNorm(config.d_model, eps=LAYER_NORM_EPS)
        self.post_layer_norm = nn.LayerNorm(config.d_model, eps=LAYER_NORM_EPS)

    def forward(self, x: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq d_model"]:
        # exercise: block
        x = x + self.attention(self.pre_layer_norm(x))
        x = x + self.mlp(self.post_layer_norm(x))
        return x


# ----------------------------------------------------------------------------------------------------------------
# 5  The transformer
# ----------------------------------------------------------------------------------------------------------------


class Transformer(nn.Module):
    """Token ids in, logits out; with GPT-2's initialisation, greedy generation and the training loss."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = nn.Embedding(config.vocab_size, config.d_model)  # what the token is
        self.position_embeddings = nn.Embedding(config.context_length, config.d_model)  # where it stands
        self.backbone = nn.ModuleList(DecoderBlock(config) for _ in range(config.n_layers))
        self.final_layer_norm = nn.LayerNorm(config.d_model, eps=LAYER_NORM_EPS)
        # OpenAI's GPT-2 is *tied*: one matrix serves as embeddings and as head. The assignment asks for two.
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self._init_weights()

    def _init_weights(self, scale_residual: bool = True) -> None:
        """Draw fresh weights, in place, from torch's global generator.

            (11)  weights ~ N(0, 0.02),   but W_o and fc2 ~ N(0, 0.02 / sqrt(2 n_layers));   biases 0;   gains 1

        The residual stream is a sum of 2 n_layers answers (two per block), and a sum of that many independent terms
        grows as the square root of their number: the smaller deviation of the matrices that write into it keeps
        its size independent of depth. The assignment's starter means to do this too, but it looks for parameters named
        `c_proj.weight`, which this model does not have, so it scales nothing. `scale_residual=False` does what the
        starter really does: plain 0.02 everywhere.

        The order of the draws is fixed, so that after `torch.manual_seed(s)` a different implementation can draw the
        same model: embeddings, positions, then per block W_k, W_q, W_v, W_o, fc1, fc2, then the head.
        """
        # exercise: init
        for module in self.modules():  # nothing random here
            if isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

        nn.init.normal_(self.embeddings.weight, 0, INIT_STD)
        nn.init.normal_(self.position_embeddings.weight, 0, INIT_STD)
        for block in self.backbone:
            residual_std = INIT_STD / math.sqrt(2 * self.config.n_layers) if scale_residual else INIT_STD
            nn.init.normal_(block.attention.W_k.weight, 0, INIT_STD)
            nn.init.normal_(block.attention.W_q.weight, 0, INIT_STD)
            nn.init.normal_(block.attention.W_v.weight, 0, INIT_STD)
            nn.init.normal_(block.attention.W_o.weight, 0, residual_std)
            nn.init.normal_(block.mlp.fc1.weight, 0, INIT_STD)
            nn.init.normal_(block.mlp.fc2.weight, 0, residual_std)
        nn.init.normal_(self.lm_head.weight, 0, INIT_STD)

    def forward(self, x: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq vocab"]:
        """Logits: row t of the result scores every candidate for token t + 1, having seen tokens 0 .. t.

            (12)  h = E[x] + P[0 .. seq-1];   h <- block(h), n_layers times;   logits = W_head norm(h)

        Without P, the blocks could tell the order of two earlier tokens only from the mask.
        Raises ValueError for more positions than the table P has (torch would say "index out of range").
        """
        seq, context = x.shape[1], self.config.context_length
        if seq > context:
            raise ValueError(f"{seq} tokens do not fit a context of {context}")

        # exercise: forward
        # Step 1: what each token is, plus where it stands.
        h = self.embeddings(x) + self.position_embeddings(torch.arange(seq, device=x.device))
        # Step 2: the blocks.
        for block in self.backbone:
            h = block(h)
        # Step 3: a last norm, because the stream was never normalised, and one score per word of the vocabulary.
        return self.lm_head(self.final_layer_norm(h))

    @torch.no_grad()  # a graph over hundreds of forward passes would only fill memory
    def generate(self, x: Int[Tensor, "batch seq"], num_new_tokens: int) -> Int[Tensor, "batch new_seq"]:
        """Return the prompt and `num_new_tokens` more tokens; each row gets its own most likely token.

            (13)  x_{n+1} = argmax_w p(w | x_1 ... x_n)

        The prompt must have at least one token (GPT-2 starts a text with 50256). It may be longer than the context: the
        model then sees the last `context_length` tokens, renumbered from position 0. Without that crop, the position
        table would have no row for them, and generation would end with an index error.
        """
        # exercise: generate
        for _ in range(num_new_tokens):
            logits = self(x[:, -self.config.context_length :])
            next_token = logits[:, -1].argmax(dim=-1, keepdim=True)  # (batch, 1): one choice per row
            x = torch.cat([x, next_token.to(x.dtype)], dim=1)
        return x

    def get_loss_on_batch(self, input_ids: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
        """Mean cross entropy, in nats per token, of tokens 1.. given the tokens before them.

            (14)  loss = - mean over rows and t >= 1 of  log softmax(logits[t - 1])[ x_t ]

        The shift by one is the whole task: logits at t - 1 are compared with the token at t. Without a shift, the model
        would learn to copy its input; with a shift by two, to skip a word. A row of n tokens gives n - 1 predictions:
        nothing predicts token 0, and the last logits have no target, so they are not computed.
        """
        # exercise: loss
        logits = self(input_ids[:, :-1])
        targets = input_ids[:, 1:]
        return F.cross_entropy(
            rearrange(logits, "batch seq vocab -> (batch seq) vocab"),
            rearrange(targets, "batch seq -> (batch seq)").long(),
        )

    @classmethod
    def from_pretrained(cls, name_or_folder: str = "gpt2") -> Transformer:
        """Load OpenAI's weights from the Hugging Face hub ("gpt2", "gpt2-medium", ...), or from a local folder.

        Only this function of this file needs `transformers`. OpenAI ties embeddings and head. Here they start equal but
        are two matrices, so fine-tuning moves them apart. To keep GPT-2's tie while training, set
        `model.lm_head.weight = model.embeddings.weight`.
        Raises ValueError for a relative of GPT-2 with a different activation, norm or attention scale.
        """
        from transformers import GPT2LMHeadModel
        from utils import state_dict_converter

        # exercise: pretrained
        theirs = GPT2LMHeadModel.from_pretrained(name_or_folder)
        for field, ours in {
            "activation_function": "gelu_new",  # transformers' name of equation (1)
            "layer_norm_epsilon": LAYER_NORM_EPS,
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
        }.items():
            value = getattr(theirs.config, field)
            if value != ours:
                raise ValueError(f"{name_or_folder} has {field} = {value}; this model computes with {ours}")

        config = ModelConfig(
            d_model=theirs.config.n_embd,
            n_heads=theirs.config.n_head,
            n_layers=theirs.config.n_layer,
            context_length=theirs.config.n_positions,
            vocab_size=theirs.config.vocab_size,
        )
        model = cls(config)
        model.load_state_dict(state_dict_converter(theirs.state_dict()))
        return model
