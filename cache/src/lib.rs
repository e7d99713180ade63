//! The store: blobs, trees, index, records
