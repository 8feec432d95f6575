//! Configuration objects with revisions, persisted; sources: API and directory.
