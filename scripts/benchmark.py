"""The command `pvt-hf benchmark`, for launchers that take a file."""

from pvt_hf.commands.benchmark import main


if __name__ == "__main__":
    raise SystemExit(main())
