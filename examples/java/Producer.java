import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.SQLException;
import java.util.UUID;

/**
 * Places orders: the order and its event in one transaction, by plain SQL.
 * Every third customer's card is declined after both rows were written: the
 * order is rolled back, and its event with it.
 */
public class Producer {
    static final String[] CUSTOMERS = {"alice", "bob", "Zo\u00eb"};

    static class Declined extends Exception {}

    /** Stands for whatever may fail before the commit. */
    static void charge(int number) throws Declined {
        if (number % 3 == 2) throw new Declined();
    }

    static void placeOrder(Connection db, String order, String customer, int number) throws SQLException, Declined {
        // The key gives the order of events; the payload arrives byte for byte. No
        // RETURNING: this role may insert events and read none. PostgreSQL writes
        // the JSON here, as the JDK has no library for it.
        try (PreparedStatement row = db.prepareStatement("INSERT INTO orders (id, customer) VALUES (?, ?)");
             PreparedStatement event = db.prepareStatement("INSERT INTO onewrite.outbox (topic, key, payload)"
                 + " VALUES (?, ?, json_build_object('order', ?::text, 'customer', ?::text)::text)")) {
            set(row, order, customer).executeUpdate();
            set(event, "order.placed", customer, order, customer).executeUpdate();
            charge(number);
            db.commit();
        } catch (SQLException | Declined e) {
            db.rollback();
            throw e;
        }
    }

    static PreparedStatement set(PreparedStatement statement, String... values) throws SQLException {
        for (int i = 0; i < values.length; i++) statement.setString(i + 1, values[i]);
        return statement;
    }

    public static void main(String[] args) throws SQLException {
        int count = args.length > 0 ? Integer.parseInt(args[0]) : 9;
        try (Connection db = DriverManager.getConnection(System.getenv("DATABASE_URL"))) {
            db.setAutoCommit(false); // from here each statement is in a transaction
            for (int number = 0; number < count; number++) {
                String order = UUID.randomUUID().toString();
                try {
                    placeOrder(db, order, CUSTOMERS[number / 3 % 3], number);
                    System.out.println("committed " + order);
                } catch (Declined e) {
                    System.out.println("rolled back " + order);
                }
            }
        }
    }
}
