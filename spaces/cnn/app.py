"""A Space in which a small convolutional network names a picture, and shows where it looked.

MODEL_ID=you/cnn python app.py    # MODEL_ID: a Hub name or a folder; in a clone, pretrained/cnn
"""

import pictures

if __name__ == "__main__":
    pictures.main(
        config="cnn",
        title="Picture classifier: CNN",
        about="A small convolutional network, written by hand, that learnt CIFAR-10 in minutes. "
        "Give it a picture: it says what it takes it for, and where it looked.",
    )
