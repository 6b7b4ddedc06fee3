"""python -m pacecore.cli, as torchrun starts it: torchrun ... -m pacecore.cli train DATA."""

from pacecore.cli import main

if __name__ == "__main__":
    main()
