//! A client's way to a server.

use std::path::PathBuf;

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};

use super::Error;

/// Where a server listens.
#[derive(Debug, Clone)]
pub enum Target {
    /// `http://host:port`
    Tcp(String),
    Unix(PathBuf),
}

pub async fn connect(target: &Target) -> Result<Channel, Error> {
    match target {
        Target::Tcp(url) => Ok(Endpoint::from_shared(url.clone())?.connect().await?),
        Target::Unix(path) => {
            let path = path.clone();
            let connector = tower::service_fn(move |_| {
                let path = path.clone();
                async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
            });
            let endpoint = Endpoint::from_static("http://keyway");
            Ok(endpoint.connect_with_connector(connector).await?)
        }
    }
}
