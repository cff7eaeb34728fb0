"""A small CRM: companies, contacts, deals and activities behind an HTTP API."""
