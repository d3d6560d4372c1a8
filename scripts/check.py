"""The command `pvt-hf check`, for launchers that take a file."""

from pvt_hf.commands.check import main


if __name__ == "__main__":
    raise SystemExit(main())
