//! The whole pipeline in one process: gateway, consumer and broadcaster on one engine and one listener.

use axum::Router;
use pulsestream_shared::admin::Dependency;
use pulsestream_shared::auth::Keyring;
use pulsestream_shared::engine::OpenError;
use pulsestream_shared::service::{Context, Role};

/// How the all-in-one process names itself.
pub const ROLE: Role =
    Role { name: "pulsestream", required: &[Dependency::Log, Dependency::Store] };

/// Builds the three services.
///
/// # Errors
/// [`OpenError`] when one of them cannot be built.
pub async fn build(context: Context) -> Result<Router, OpenError> {
    let keyring = Keyring::open(&context).await?;
    let gateway = pulsestream_gateway::build(context.clone(), keyring.clone()).await?;
    let broadcaster = pulsestream_broadcaster::build(context.clone(), keyring).await?;
    let consumer = pulsestream_consumer::build(context).await?;
    Ok(gateway.merge(broadcaster).merge(consumer))
}
