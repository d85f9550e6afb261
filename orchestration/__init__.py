"""When things run: Dagster, kept thin above ``assets``."""
