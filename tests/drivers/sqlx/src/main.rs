//! sqlx at work on an audited table: see ../../README.md for what each client does and prints.

use std::error::Error;

use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::types::BigDecimal;
use sqlx::types::ipnetwork::IpNetwork;
use sqlx::{ConnectOptions, Connection, Executor};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

async fn set_context(connection: &mut PgConnection, name: &str, user: &str) -> Result<()> {
    let address: IpNetwork = "203.0.113.7".parse()?;
    sqlx::query(
        "SELECT audit.set_context(user_id => $1, tenant_id => $2, request_id => $3, ip_address => $4, context => $5)",
    )
    .bind(user)
    .bind(format!("{name}-tenant"))
    .bind(None::<String>)
    .bind(address)
    .bind(json!({"client": name, "nested": ["ä", null, 1.5]}))
    .execute(connection)
    .await?;
    Ok(())
}

async fn insert(
    connection: &mut PgConnection,
    key: &str,
    owner: Option<&str>,
) -> std::result::Result<(), sqlx::Error> {
    let balance: BigDecimal = "10.50".parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
    sqlx::query("INSERT INTO account (key, owner, balance, meta) VALUES ($1, $2, $3, $4)")
        .bind(key)
        .bind(owner)
        .bind(balance)
        .bind(json!({"of": owner}))
        .execute(connection)
        .await?;
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let name = std::env::args().nth(1).ok_or("no name given")?;
    let mut connection = PgConnectOptions::new().application_name(&name).connect().await?;

    for i in 1..=8 {
        let (user, key) = (format!("{name}-user-{i}"), format!("{name}-{i}"));
        let mut transaction = connection.begin().await?;
        set_context(&mut transaction, &name, &user).await?;
        insert(&mut transaction, &key, Some(&user)).await?;
        sqlx::query("UPDATE account SET balance = balance + $1 WHERE key = $2")
            .bind(BigDecimal::from(i))
            .bind(&key)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
    }

    let mut transaction = connection.begin().await?;
    let ghost = format!("{name}-ghost");
    set_context(&mut transaction, &name, &ghost).await?;
    let duplicate = match insert(&mut transaction, &format!("{name}-1"), Some(&ghost)).await {
        Err(sqlx::Error::Database(error)) => error.code().map(String::from),
        Err(error) => return Err(error.into()),
        Ok(()) => None,
    };
    transaction.rollback().await?;

    insert(&mut connection, &format!("{name}-alone"), None).await?;

    let mut transaction = connection.begin().await?;
    set_context(&mut transaction, &name, &format!("{name}-user-9")).await?;
    let event = sqlx::query("SELECT audit.log_event($1, $2, $3, $4)")
        .bind("order.approved")
        .bind("order")
        .bind(format!("{name}-9"))
        .bind(json!({"amount": 100.25}));
    transaction.execute(event).await?;
    let failed = sqlx::query("SELECT audit.log_login_failed($1, $2)")
        .bind(format!("{name}-otto"))
        .bind("wrong password");
    transaction.execute(failed).await?;
    transaction.commit().await?;

    let events: Vec<Value> = sqlx::query_scalar(
        "SELECT to_jsonb(l) FROM (
             SELECT operation, action, resource_id, user_id, tenant_id, host(ip_address) AS ip_address, context, status, details,
                    changed_columns, new_row ->> 'balance' AS balance, new_row ->> 'owner' AS owner
               FROM audit.log WHERE application_name = $1 ORDER BY era, position, command, seq) l",
    )
    .bind(&name)
    .fetch_all(&mut connection)
    .await?;
    connection.close().await?;
    println!("{}", json!({"duplicate": duplicate, "events": events}));
    Ok(())
}
