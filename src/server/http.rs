//! Metrics and health over HTTP, on loopback.

use std::{io, sync::Arc};

use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use tokio::net::TcpListener;

use super::connection::Shared;

/// Answers until the node stops.
pub(super) async fn serve(shared: Arc<Shared>, listener: TcpListener) -> io::Result<()> {
    let stopping = shared.stopping.clone();
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(shared);
    axum::serve(listener, router).with_graceful_shutdown(stopping.cancelled_owned()).await
}

async fn metrics(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let page = shared.engine.metrics.page(&shared);
    ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], page)
}

/// Whether the node must be restarted.
async fn healthz(State(shared): State<Arc<Shared>>) -> (StatusCode, String) {
    match &*shared.engine.failure().borrow() {
        None => (StatusCode::OK, "ok\n".into()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("failed: {reason}\n")),
    }
}

/// Whether the node can take publishes.
async fn readyz(State(shared): State<Arc<Shared>>) -> (StatusCode, String) {
    let engine = &shared.engine;
    let reason = if let Some(reason) = &*engine.failure().borrow() {
        format!("failed: {reason}")
    } else if shared.stopping.is_cancelled() {
        "stopping".into()
    } else if !*engine.ready().borrow() {
        "recovering".into()
    } else if engine.is_disk_low() {
        "disk low: publishes are refused, reads go on".into()
    } else {
        return (StatusCode::OK, "ready\n".into());
    };
    (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n"))
}
