"""A Space in which a residual network names a picture, and shows where it looked.

MODEL_ID=you/resnet python app.py   # MODEL_ID: a Hub name or a folder; in a clone,
                                    # pretrained/resnet
"""

import pictures

if __name__ == "__main__":
    pictures.main(
        config="resnet",
        title="Picture classifier: ResNet",
        about="A residual network, written by hand and trained from scratch on CIFAR-10. "
        "Give it a picture: it says what it takes it for, and where it looked.",
    )
