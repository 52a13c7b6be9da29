//! Runs a scenario on several brokers and in several encodings, each as a test of its own.

/// Runs a scenario on one node and on a cluster of three.
macro_rules! on_one_and_three {
    ($($name:ident),+ $(,)?) => {
        mod on_one_node {
            $(#[tokio::test]
            async fn $name() {
                super::$name(crate::support::broker::Broker::shared_one()).await;
            })+
        }
        mod on_three_nodes {
            $(#[tokio::test]
            async fn $name() {
                super::$name(crate::support::broker::Broker::shared_three()).await;
            })+
        }
    };
}
pub(crate) use on_one_and_three;

/// Runs a scenario in JSON on one node and on a cluster of three, and in MessagePack on one node:
/// brokers do not see how an edge and its client speak.
macro_rules! in_both_encodings {
    ($($name:ident),+ $(,)?) => {
        $crate::support::scenarios::in_both_encodings!(@ in_json_on_one_node, shared_one, Json, $($name)+);
        $crate::support::scenarios::in_both_encodings!(@ in_json_on_three_nodes, shared_three, Json, $($name)+);
        $crate::support::scenarios::in_both_encodings!(@ in_msgpack_on_one_node, shared_one, MsgPack, $($name)+);
    };
    (@ $module:ident, $broker:ident, $encoding:ident, $($name:ident)+) => {
        mod $module {
            use crate::support::{broker::Broker, client::Encoding};
            $(#[tokio::test]
            async fn $name() {
                super::$name(Broker::$broker(), Encoding::$encoding).await;
            })+
        }
    };
}
pub(crate) use in_both_encodings;
