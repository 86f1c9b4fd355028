//! The operations listener from outside: bytes over TCP, and what a scrape says.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{PATIENCE, wait_async};

/// An answer as it came.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// Where a daemon tells its operators how it does.
#[derive(Clone)]
pub struct Web(pub String);

impl Web {
    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.0).await.expect("it listens")
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await
    }

    /// Sends these bytes, and reads until the daemon closes.
    pub async fn send(&self, bytes: &[u8]) -> Answer {
        let mut stream = self.connect().await;
        // It may have heard enough before the end.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let reading = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer));
        // What it has not read makes the kernel reset the connection, after the answer.
        let _ = reading.await.expect("it answers and closes");
        let answer = String::from_utf8(answer).expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Answer { status, head: head.to_owned(), body: body.to_owned() }
    }

    pub async fn metrics(&self) -> Metrics {
        let answer = self.get("/metrics").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        Metrics(answer.body)
    }

    /// Waits until the metric, with these labels among its own, is such a number; all that is told then.
    pub async fn until(&self, metric: &str, labels: &[(&str, &str)], such: impl Fn(f64) -> bool) -> Metrics {
        wait_async(|| async {
            let told = self.metrics().await;
            such(told.sum(metric, labels)).then_some(told)
        })
        .await
    }
}

/// What a scrape said.
pub struct Metrics(pub String);

impl Metrics {
    /// The sum over all that have these labels.
    pub fn sum(&self, metric: &str, labels: &[(&str, &str)]) -> f64 {
        let samples = self.0.lines().filter(|line| {
            let rest = line.strip_prefix(metric);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        let meant = samples.filter(|line| {
            labels.iter().all(|(name, value)| {
                line.contains(&format!("{{{name}=\"{value}\"")) || line.contains(&format!(",{name}=\"{value}\""))
            })
        });
        meant.map(|line| line.rsplit(' ').next().and_then(|number| number.parse::<f64>().ok()).expect("a number")).sum()
    }

    /// The names of the metrics that are told.
    pub fn names(&self) -> Vec<&str> {
        let types = self.0.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        types.filter_map(|line| line.split(' ').next()).collect()
    }
}
