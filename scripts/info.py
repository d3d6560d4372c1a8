"""The command `pvt-hf info`, for launchers that take a file."""

from pvt_hf.commands.info import main


if __name__ == "__main__":
    raise SystemExit(main())
