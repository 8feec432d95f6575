//! Metrics text formats and compiled access-log formats, shared by both halves.
