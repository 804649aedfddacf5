//! Transparent data encryption for stock PostgreSQL
