"""The paper's claims on labelled real videos, cell by cell; see __main__."""
