"""What a language model writes while it trains and when it is done."""

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback

SAMPLE_TOKENS = 300


class Sample(TrainerCallback):
    """Prints what the model writes, at each evaluation.

    Raises:
        ValueError: the tokenizer does not know all characters of the prompt.
    """

    def __init__(self, tokenizer, prompt: str):
        if unknown := unknown_characters(tokenizer, prompt):
            raise ValueError(
                f"--prompt has characters that the model's tokenizer does not know: "
                f"{' '.join(unknown)}; give one without them"
            )
        self.tokenizer, self.prompt = tokenizer, prompt

    def on_evaluate(self, args, state, control, model, **kwargs):
        """Every process writes the same: with FSDP, none has the whole model. One speaks."""
        text = write_on(model, self.tokenizer, self.prompt, seed=args.seed)
        if state.is_world_process_zero:
            tqdm.write(f"--- after {state.global_step} updates ---\n{text}\n---")


def unknown_characters(tokenizer, prompt: str) -> list[str]:
    """What a prompt has that a tokenizer does not know, in order.

    White space is passed over: a prompt is a line end by default, which a text need not have.
    """
    return [
        character
        for character in dict.fromkeys("".join(prompt.split()))
        if tokenizer.unk_token_id in tokenizer(character, add_special_tokens=False).input_ids
    ]


class NoEpochs(TrainerCallback):
    """Leaves epochs out of what is printed: of overlapping blocks, one is many passes."""

    def on_log(self, args, state, control, logs, **kwargs):
        """Called before what prints."""
        logs.pop("epoch", None)


def write_on(model, tokenizer, prompt: str, seed: int, tokens: int = SAMPLE_TOKENS) -> str:
    """A sample of the model's text, which leaves the run's random numbers alone.

    A model with positions has learned its context's length and no more: when that is full, it goes
    on from the last half. A recurrent one has no such end.
    """
    ids = [tokenizer.bos_token_id, *tokenizer(prompt).input_ids]
    end = len(ids) + tokens
    context = getattr(model.config, "max_position_embeddings", end + 1)
    was_training = model.training
    model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        while len(ids) < end:
            window = torch.tensor([ids if len(ids) < context else ids[-(context // 2) :]])
            output = model.generate(
                window.to(model.device),
                attention_mask=torch.ones_like(window).to(model.device),
                max_new_tokens=min(end - len(ids), context - window.shape[1]),
                do_sample=True,
                temperature=0.8,
                top_k=50,
                eos_token_id=None,
                pad_token_id=tokenizer.pad_token_id,
            )
            ids += output[0, window.shape[1] :].tolist()
    model.train(was_training)
    return tokenizer.decode(ids, skip_special_tokens=True)
