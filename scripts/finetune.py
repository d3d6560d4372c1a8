"""The command `pvt-hf finetune`, for launchers that take a file."""

from pvt_hf.commands.finetune import main


if __name__ == "__main__":
    main()
