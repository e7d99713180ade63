//! One build from request to response
