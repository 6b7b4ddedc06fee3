"""python -m pacecore.cli, which is what torchrun starts: torchrun ... -m pacecore.cli train DATA."""

from pacecore.cli import main

if __name__ == "__main__":
    main()
