"""The architectures. Importing this registers each of them with transformers' Auto classes."""

import transformers

from . import bert, cnn, gpt, resnet, rnn, seq2seq, seq2seq_transformer, word2vec


def register(module) -> None:
    """Makes a model file's classes known under the names of its `AUTO_MAP`.

    `AutoModel...from_pretrained` then finds them without remote code, and what they save carries
    its code along for those who do not have this package.
    """
    classes = {auto: getattr(module, path.split(".")[1]) for auto, path in module.AUTO_MAP.items()}
    config_class = classes["AutoConfig"]
    for auto, cls in classes.items():
        cls.register_for_auto_class(auto)
        key = config_class.model_type if auto == "AutoConfig" else config_class
        getattr(transformers, auto).register(key, cls, exist_ok=True)


for _module in (bert, cnn, gpt, resnet, rnn, seq2seq, seq2seq_transformer, word2vec):
    register(_module)
