"""Seedbed under Airflow: DAGs built from pipeline files. Importing it imports neither a model nor a store's client."""
