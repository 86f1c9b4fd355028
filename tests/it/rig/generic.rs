//! A client that knows none of our files: all it can say, it learns from the daemon's own reflection.
//!
//! As grpcurl and its like do it: ask for the services, fetch the files that declare them and what those import,
//! and speak JSON at the near end.

use std::collections::{BTreeMap, BTreeSet};

use http::uri::PathAndQuery;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor};
use prost_types::FileDescriptorProto;
use serde_json::Value;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

/// The two versions of the reflection service that clients speak.
#[derive(Debug, Clone, Copy)]
pub enum Reflection {
    V1,
    V1Alpha,
}

pub struct Generic {
    channel: Channel,
    pool: DescriptorPool,
    services: Vec<String>,
}

/// A refusal, read by the descriptors that the daemon served.
#[derive(Debug)]
pub struct Refused {
    pub code: tonic::Code,
    /// `google.rpc.Status`, its details spelt out.
    pub status: Value,
}

impl Generic {
    /// Learns everything there is to know, from whoever listens at `address`.
    pub async fn learn(address: &str, reflection: Reflection) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        let channel = endpoint.connect().await.expect("the daemon listens");
        let Answer::Services(services) = ask(&channel, reflection, Question::Services).await else {
            panic!("no list of services")
        };
        let mut files = BTreeMap::new();
        // Details of errors are named by no service: clients look their types up when they meet one.
        let details = ["google.rpc.Status", "google.rpc.ErrorInfo"].map(str::to_owned);
        for symbol in services.iter().cloned().chain(details) {
            fetch(&channel, reflection, Question::Symbol(symbol), &mut files).await;
        }
        loop {
            let imports: BTreeSet<String> = files.values().flat_map(|it| it.dependency.clone()).collect();
            let Some(missing) = imports.into_iter().find(|name| !files.contains_key(name)) else {
                break;
            };
            fetch(&channel, reflection, Question::File(missing), &mut files).await;
        }
        let mut pool = DescriptorPool::new();
        pool.add_file_descriptor_protos(files.into_values()).expect("the files served are whole");
        Self { channel, pool, services }
    }

    pub fn services(&self) -> &[String] {
        &self.services
    }

    /// Every file that was served, by name.
    pub fn files(&self) -> BTreeSet<String> {
        self.pool.files().map(|file| file.name().to_owned()).collect()
    }

    /// `package.Service/Method`, JSON to JSON.
    pub async fn call(&self, method: &str, request: Value) -> Result<Value, Refused> {
        let (method, path) = self.method(method);
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        client.ready().await.expect("the daemon is there");
        let answer = client.unary(Request::new(read(method.input(), request)), path, Dynamic(method.output()));
        match answer.await {
            Ok(answer) => Ok(write(answer.get_ref())),
            Err(status) => Err(self.refused(&status)),
        }
    }

    /// Every method of the daemon's own that takes one message and gives one.
    pub fn unary_methods(&self) -> Vec<MethodDescriptor> {
        let own = self.pool.services().filter(|service| service.full_name().starts_with("keyway."));
        let methods = own.flat_map(|service| service.methods().collect::<Vec<_>>());
        methods.filter(|method| !method.is_client_streaming() && !method.is_server_streaming()).collect()
    }

    /// Sends a message as it is.
    pub async fn send(&self, method: &MethodDescriptor, request: DynamicMessage) -> Result<DynamicMessage, Status> {
        let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        client.ready().await.expect("the daemon is there");
        let path = path.parse().expect("a path");
        Ok(client.unary(Request::new(request), path, Dynamic(method.output())).await?.into_inner())
    }

    /// A method that answers with a stream.
    pub async fn watch(&self, method: &str, request: Value) -> Watch {
        let (method, path) = self.method(method);
        assert!(method.is_server_streaming());
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        client.ready().await.expect("the daemon is there");
        let request = Request::new(read(method.input(), request));
        let answer = client.server_streaming(request, path, Dynamic(method.output()));
        Watch(answer.await.expect("it is served").into_inner())
    }

    fn method(&self, name: &str) -> (MethodDescriptor, PathAndQuery) {
        let (service, method) = name.split_once('/').expect("service/method");
        let service = self.pool.get_service_by_name(service).expect("a service served");
        let method = service.methods().find(|it| it.name() == method);
        let path = format!("/{name}").parse().expect("a path");
        (method.expect("a method served"), path)
    }

    fn refused(&self, status: &Status) -> Refused {
        let message = self.pool.get_message_by_name("google.rpc.Status").expect("served");
        let details = DynamicMessage::decode(message, status.details()).expect("details decode");
        Refused { code: status.code(), status: write(&details) }
    }
}

/// The answers of a stream.
pub struct Watch(Streaming<DynamicMessage>);

impl Watch {
    pub async fn next(&mut self) -> Value {
        let message = self.0.message().await.expect("the stream lasts");
        write(&message.expect("the stream lasts"))
    }
}

fn read(message: MessageDescriptor, json: Value) -> DynamicMessage {
    DynamicMessage::deserialize(message, json).expect("the request's JSON fits its message")
}

fn write(message: &DynamicMessage) -> Value {
    serde_json::to_value(message).expect("every answer has a JSON form")
}

enum Question {
    Services,
    Symbol(String),
    File(String),
}

enum Answer {
    Services(Vec<String>),
    Files(Vec<Vec<u8>>),
}

async fn fetch(
    channel: &Channel,
    reflection: Reflection,
    question: Question,
    files: &mut BTreeMap<String, FileDescriptorProto>,
) {
    let Answer::Files(served) = ask(channel, reflection, question).await else { panic!("no files") };
    for bytes in served {
        let file = FileDescriptorProto::decode(&*bytes).expect("a descriptor");
        files.insert(file.name().to_owned(), file);
    }
}

/// The two versions differ in their package alone.
macro_rules! ask_in {
    ($version:ident, $channel:expr, $question:expr) => {{
        use pb::server_reflection_request::MessageRequest as Ask;
        use pb::server_reflection_response::MessageResponse as Told;
        use tonic_reflection::pb::$version as pb;
        let request = pb::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(match $question {
                Question::Services => Ask::ListServices(String::new()),
                Question::Symbol(symbol) => Ask::FileContainingSymbol(symbol),
                Question::File(name) => Ask::FileByFilename(name),
            }),
        };
        let mut client = pb::server_reflection_client::ServerReflectionClient::new($channel.clone());
        let answer = client.server_reflection_info(tokio_stream::once(request)).await;
        let answer = answer.expect("reflection is served").into_inner().message().await;
        match answer.expect("answered").and_then(|answer| answer.message_response) {
            Some(Told::ListServicesResponse(list)) => {
                Answer::Services(list.service.into_iter().map(|service| service.name).collect())
            }
            Some(Told::FileDescriptorResponse(files)) => Answer::Files(files.file_descriptor_proto),
            other => panic!("reflection answered {other:?}"),
        }
    }};
}

async fn ask(channel: &Channel, reflection: Reflection, question: Question) -> Answer {
    match reflection {
        Reflection::V1 => ask_in!(v1, channel, question),
        Reflection::V1Alpha => ask_in!(v1alpha, channel, question),
    }
}

/// A codec for messages whose shape is known at run time alone: that of the answer.
struct Dynamic(MessageDescriptor);

impl Codec for Dynamic {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = AsItIs;
    type Decoder = ByShape;

    fn encoder(&mut self) -> AsItIs {
        AsItIs
    }

    fn decoder(&mut self) -> ByShape {
        ByShape(self.0.clone())
    }
}

struct AsItIs;

impl Encoder for AsItIs {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, item: DynamicMessage, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

struct ByShape(MessageDescriptor);

impl Decoder for ByShape {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let message = DynamicMessage::decode(self.0.clone(), buffer);
        message.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
