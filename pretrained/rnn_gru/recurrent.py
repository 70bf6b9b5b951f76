"""Recurrent layers: a state that is carried along a text, and how it learns.

A recurrent network reads one position after the other and keeps what it needs in a state of fixed
size: state_t = cell(input_t, state_(t-1)). The same weights serve at every position. Three cells
(W x + b of the input, U h + d of the state before; * goes number by number):

    rnn     h = tanh(Wx + b + Uh + d)                                             Elman 1990

    lstm    i, f, o = sigmoid(..), sigmoid(..), sigmoid(..), g = tanh(..),
            each .. a part of Wx + b + Uh + d              Hochreiter and Schmidhuber 1997,
            c = f * c + i * g                              with the forget gate f of Gers 2000
            h = o * tanh(c)

    gru     r, z = sigmoid(..), sigmoid(..)                                      Cho et al. 2014
            n = tanh(Wx + b + r * (Uh + d))
            h = (1 - z) * n + z * h

To learn, the chain of cells is walked back ("backpropagation through time", Werbos 1990). At each
step back, the gradient is multiplied by the same U and by slopes below 1, so it fades with distance
in the `rnn`. The gates of the others open a path on which it is only multiplied by f or by z.

What makes it fast: all that does not wait for the state before is done for all positions at once.
That is Wx + b going forward and, going back, the gradients of W and of U: one large product each.
`Recurrence` does this by hand; `step_by_step` is the same in plain sight, and the tests compare
them.
"""

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer


def check_recurrent_config(config, kind: str, kinds: dict) -> None:
    """Raises ValueError, in one line that says what would be right, for a shape that cannot be.

    Args:
        config: with sizes, `hidden_dropout` and `initializer_range`.
        kind: the name of its setting that is one of `kinds`.
    """
    for name in ("vocab_size", "hidden_size", "num_hidden_layers"):
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")
    if (value := getattr(config, kind)) not in kinds:
        raise ValueError(f"{kind} is {value!r}; it must be one of {', '.join(kinds)}")
    if not 0 <= config.hidden_dropout < 1:
        raise ValueError(f"hidden_dropout is {config.hidden_dropout}; it must be in [0, 1)")
    if not config.initializer_range > 0:
        raise ValueError(f"initializer_range is {config.initializer_range}; it must be above 0")


# -------------------------------------------------------------------------------------- the cells


class RNNCell:
    """One step of the plain recurrent network. Its state is (h,).

    All cells have the same two functions, over (batch, ...):

    `step(projected, recurrent, state)`: from Wx + b and Uh + d, each (batch, num_gates *
    hidden_size), and the state before, the state after; and what `step_back` will want to know.

    `step_back(gradient, known)`: from the gradients of the loss by the state after, those by
    `projected` and by `recurrent`, a list of one tensor for each gate, and by the state before as
    far as it does not go through Uh + d.
    """

    num_gates = 1
    num_states = 1
    one_gradient = True  # `projected` and `recurrent` are only ever added

    @staticmethod
    def step(projected, recurrent, state):
        """Forward."""
        h = (projected + recurrent).tanh()
        return (h,), (h,)

    @staticmethod
    def step_back(gradient, known):
        """Backward: tanh' = 1 - tanh^2; the only way back is through Uh."""
        (dh,), (h,) = gradient, known
        d = [dh * (1 - h * h)]
        return d, d, (torch.zeros_like(dh),)


class GRUCell:
    """One step of the gated recurrent unit. Its state is (h,)."""

    num_gates = 3  # r, z, n: in PyTorch's order
    num_states = 1
    one_gradient = False

    @staticmethod
    def step(projected, recurrent, state):
        """Forward: z says how much of the old h stays, r how much of it the new part n sees."""
        (h,) = state
        x_r, x_z, x_n = projected.chunk(3, dim=-1)
        u_r, u_z, u_n = recurrent.to(projected.dtype).chunk(3, dim=-1)
        r, z = (x_r + u_r).sigmoid(), (x_z + u_z).sigmoid()
        n = (x_n + r * u_n).tanh()
        return (n + z * (h - n),), (r, z, n, u_n, h)

    @staticmethod
    def step_back(gradient, known):
        """Backward: one way back is z itself, multiplied by no matrix."""
        (dh,), (r, z, n, u_n, h) = gradient, known
        d_n = dh * (1 - z) * (1 - n * n)
        d_r = d_n * u_n * r * (1 - r)
        d_z = dh * (h - n) * z * (1 - z)
        return [d_r, d_z, d_n], [d_r, d_z, d_n * r], (dh * z,)


class LSTMCell:
    """One step of long short-term memory. Its state is (h, c): what it says, what it keeps."""

    num_gates = 4  # i, f, g, o: in PyTorch's order
    num_states = 2
    one_gradient = True

    @staticmethod
    def step(projected, recurrent, state):
        """Forward: i lets in, f keeps, o shows."""
        _, before = state
        i, f, g, o = (projected + recurrent).chunk(4, dim=-1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c = f * before + i * g
        shown = c.tanh()
        return (o * shown, c), (i, f, g, o, before, shown)

    @staticmethod
    def step_back(gradient, known):
        """Backward: the way back through c is multiplied by f only."""
        (dh, dc), (i, f, g, o, before, shown) = gradient, known
        dc = dc + dh * o * (1 - shown * shown)
        d_i = dc * g * i * (1 - i)
        d_f = dc * before * f * (1 - f)
        d_g = dc * i * (1 - g * g)
        d_o = dh * shown * o * (1 - o)
        d = [d_i, d_f, d_g, d_o]
        return d, d, (torch.zeros_like(dh), dc * f)


CELLS = {"rnn": RNNCell, "gru": GRUCell, "lstm": LSTMCell}

# ------------------------------------------------------------------------- along the whole sequence


def _walk(cell, projected, weight, bias, mask, state):
    """The state after each position, and what `step_back` will want to know of it: two lists."""
    projected = projected.to(state[0].dtype)
    states, known = [], []
    for t in range(projected.shape[1]):
        recurrent = torch.addmm(bias, state[0].to(weight.dtype), weight.T)
        after, needed = cell.step(projected[:, t], recurrent, state)
        state = after if mask is None else _choose(mask[:, t], after, state)
        states.append(state)
        known.append(needed)
    return states, known


def step_by_step(cell, projected, weight, bias, mask, *state):
    """Takes a cell along a sequence; autograd finds the way back.

    Args:
        cell: of `CELLS`.
        projected: (batch, time, num_gates * hidden_size), Wx + b of all positions.
        weight, bias: U (num_gates * hidden_size, hidden_size) and d (num_gates * hidden_size).
        mask: (batch, time, 1), False where the state is to stay as it is; or None.
        state: the tensors of the state before, (batch, hidden_size) each, in fp32 or fp64: gates
            and states are computed in their dtype, Uh in that of the weight.

    Returns:
        h after each position (batch, time, hidden_size), and the tensors of the last state.
    """
    states, _ = _walk(cell, projected, weight, bias, mask, state)
    return torch.stack([h for h, *_ in states], dim=1), *states[-1]


class Recurrence(torch.autograd.Function):
    """`step_by_step` with backpropagation through time by hand.

    Autograd would add up the gradient of U over the positions, one product each. Here the gradients
    by Uh + d are kept, and the gradient of U is one product over all positions at the end.
    """

    @staticmethod
    def forward(ctx, cell, projected, weight, bias, mask, *state):
        """Arguments and results as in `step_by_step`."""
        states, known = _walk(cell, projected, weight, bias, mask, state)
        h = torch.stack([h for h, *_ in states], dim=1)
        ctx.cell, ctx.shape = cell, projected.shape
        flat = [tensor for needed in known for tensor in needed]
        ctx.save_for_backward(weight, mask, state[0], h, *flat)
        ctx.set_materialize_grads(False)  # often nobody asks for the last state: no zeros for it
        return h, *states[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx, wanted, *gradient):
        """From the gradients by all h and by the last state, those by all that went in."""
        weight, mask, first, h, *flat = ctx.saved_tensors
        time = h.shape[1]
        parts = len(flat) // time
        gradient = [torch.zeros_like(first) if part is None else part for part in gradient]
        by_projected = weight.new_empty(ctx.shape)
        by_recurrent = by_projected if ctx.cell.one_gradient else torch.empty_like(by_projected)
        for t in reversed(range(time)):
            # What the loss wants of this h itself is added to what later states want of it.
            if wanted is not None:
                gradient = [gradient[0] + wanted[:, t], *gradient[1:]]
            known = flat[t * parts : (t + 1) * parts]
            d_projected, d_recurrent, d_before = ctx.cell.step_back(gradient, known)
            torch.cat(d_projected, dim=-1, out=by_projected[:, t])
            if not ctx.cell.one_gradient:
                torch.cat(d_recurrent, dim=-1, out=by_recurrent[:, t])
            if mask is not None:
                by_projected[:, t] *= mask[:, t]
                by_recurrent[:, t] *= mask[:, t]
                d_before = _choose(mask[:, t], d_before, gradient)
            gradient = [d_before[0] + by_recurrent[:, t] @ weight, *d_before[1:]]
        h_before = torch.cat((first[:, None], h[:, :-1]), dim=1).to(weight.dtype)
        flat_gradient = by_recurrent.flatten(0, 1)  # (batch * time, gates)
        return (
            None,
            by_projected,
            flat_gradient.T @ h_before.flatten(0, 1),
            flat_gradient.sum(0, dtype=first.dtype).to(weight.dtype),
            None,
            *gradient,
        )


def _choose(mask, new, old):
    """Of two states, the new one where the mask (batch, 1) is True."""
    return [torch.where(mask, n, o) for n, o in zip(new, old, strict=True)]


class RecurrentLayer(GradientCheckpointingLayer):
    """A cell with its weights, taken along a sequence.

    The weights are two linear maps, one of the input and one of the state, as PEFT wants them; each
    holds all gates of the cell, in PyTorch's order.
    """

    def __init__(self, cell_type: str, input_size: int, hidden_size: int):
        super().__init__()
        self.cell = CELLS[cell_type]
        self.hidden_size = hidden_size
        self.input_proj = nn.Linear(input_size, self.cell.num_gates * hidden_size)
        self.hidden_proj = nn.Linear(hidden_size, self.cell.num_gates * hidden_size)
        for linear in (self.input_proj, self.hidden_proj):
            linear.recurrent_bound = hidden_size**-0.5
        if self.cell is LSTMCell:
            self.input_proj.forget_gate = slice(hidden_size, 2 * hidden_size)

    def forward(self, inputs, state=None, mask=None, reverse: bool = False):
        """Reads a batch of sequences.

        Args:
            inputs: (batch, time, input_size).
            state: the tensors that an earlier call gave back; zeros where None.
            mask: (batch, time), False for padding, on either side: the state passes it unchanged.
            reverse: read from the end to the beginning (each text of its own length, if there is
                a mask), for a network of two directions.

        Returns:
            h at each position (batch, time, hidden_size), in the dtype of the linear maps; and the
            state after the last that was read, a tuple of (batch, hidden_size), in fp32 or fp64.
        """
        projected = self.input_proj(inputs)  # (batch, time, num_gates * hidden_size)
        mask = None if mask is None else mask.bool()[:, :, None]
        if reverse:
            projected = projected.flip(1)
            mask = None if mask is None else mask.flip(1)
        if state is None:
            # A state adds up many small changes: in bf16 most of them would be rounded away.
            dtype = torch.promote_types(projected.dtype, torch.float32)
            zeros = projected.new_zeros(len(inputs), self.hidden_size, dtype=dtype)
            state = (zeros,) * self.cell.num_states
        weight, bias = (part.to(projected.dtype) for part in self._hidden_map())
        h, *state = Recurrence.apply(self.cell, projected, weight, bias, mask, *state)
        outputs = h.to(projected.dtype)
        return outputs.flip(1) if reverse else outputs, tuple(state)

    def _hidden_map(self):
        """U and d; where PEFT has added something to the linear map, U is what it makes of 1."""
        if type(self.hidden_proj) is nn.Linear:
            return self.hidden_proj.weight, self.hidden_proj.bias
        bias = self.hidden_proj.bias
        one = torch.eye(self.hidden_size, dtype=bias.dtype, device=bias.device)
        return (self.hidden_proj(one) - bias).T, bias


class RecurrentState:
    """What a stack of recurrent layers carries from one piece of a text to the next.

    It is the cache of `generate`: one of a size that does not grow with the text.

    Args:
        layers: for each layer, the tensors of its state, (batch, hidden_size) each; then what else
            a model counts for each text, (batch, 1) each.
        seen_tokens: how many tokens were read.
    """

    is_compileable = False

    def __init__(self, layers: list[tuple[torch.Tensor, ...]], seen_tokens: int):
        self.layers = layers
        self.seen_tokens = seen_tokens

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens were read, as for any cache."""
        return self.seen_tokens

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Beam search goes on with these rows."""
        self.layers = [tuple(part[beam_idx] for part in layer) for layer in self.layers]

    def detach(self) -> "RecurrentState":
        """The same numbers, from which no gradient flows back: truncated backpropagation."""
        layers = [tuple(part.detach() for part in layer) for layer in self.layers]
        return RecurrentState(layers, self.seen_tokens)


@torch.no_grad()
def init_recurrent_weights(module: nn.Module) -> None:
    """PyTorch's initialisation, for one module: uniform up to 1 / sqrt(hidden_size).

    But the biases begin at 0, and that of the LSTM's forget gate at 1: so it keeps what it has
    until it learns to forget (Jozefowicz et al. 2015).
    """
    # Asked of the linear map itself, not of the layer around it: in code other than its own,
    # transformers passes over modules that have no parameters of their own.
    bound = getattr(module, "recurrent_bound", None)
    if bound is None:
        return
    init.uniform_(module.weight, -bound, bound)
    bias = torch.zeros_like(module.bias)
    bias[getattr(module, "forget_gate", slice(0))] = 1.0
    init.copy_(module.bias, bias)
