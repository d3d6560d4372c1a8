"""The command `pvt-hf evaluate semantic-segmentation`, for launchers that take a file."""

from pvt_hf.commands.evaluate import main


if __name__ == "__main__":
    main("semantic-segmentation")
