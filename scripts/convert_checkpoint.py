"""The command `pvt-hf convert`, for launchers that take a file."""

from pvt_hf.commands.convert import main


if __name__ == "__main__":
    raise SystemExit(main())
