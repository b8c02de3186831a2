"""Describe the API: the OpenAPI document and the pages that show it."""
