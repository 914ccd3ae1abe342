import com.sun.net.httpserver.*;
import java.security.*;
import java.sql.*;
import java.util.*;
import javax.crypto.Mac;
import static java.nio.charset.StandardCharsets.*;

/** A webhook consumer that ships each order once, whatever is sent twice. */
public class Consumer {
    static final String SOURCE = System.getenv().getOrDefault("EVENT_SOURCE", "/shop"); // of all events that come here
    static final byte[] SECRET = Base64.getDecoder().decode(System.getenv("WEBHOOK_SECRET").split("whsec_")[1]);

    static boolean genuine(Headers headers, byte[] body) throws GeneralSecurityException {
        String id = headers.getFirst("webhook-id"), timestamp = headers.getFirst("webhook-timestamp");
        Mac mac = Mac.getInstance("HmacSHA256");
        mac.init(new javax.crypto.spec.SecretKeySpec(SECRET, "HmacSHA256"));
        mac.update((id + "." + timestamp + ".").getBytes(ISO_8859_1));
        byte[] want = ("v1," + Base64.getEncoder().encodeToString(mac.doFinal(body))).getBytes(ISO_8859_1);
        boolean known = false; // of several signatures, while a key is rotated, one is enough
        for (String given : Objects.requireNonNullElse(headers.getFirst("webhook-signature"), "").split(" "))
            known |= MessageDigest.isEqual(given.getBytes(ISO_8859_1), want);
        return known && Math.abs(System.currentTimeMillis() / 1000 - Long.parseLong(timestamp)) <= 5 * 60
            && id.equals(headers.getFirst("ce-id")) && SOURCE.equals(headers.getFirst("ce-source")); // not signed
    }

    static void shipOnce(String event, String order) throws SQLException {
        try (Connection db = DriverManager.getConnection(System.getenv("DATABASE_URL")); // in earnest, one of a pool
             var mark = db.prepareStatement("INSERT INTO seen (source, id) VALUES (?, ?) ON CONFLICT DO NOTHING");
             var effect = db.prepareStatement("INSERT INTO shipments (order_id, customer)"
                 + " SELECT j->>'order', j->>'customer' FROM CAST(? AS jsonb) j")) { // the JDK reads no JSON
            db.setAutoCommit(false);
            mark.setString(1, SOURCE);
            mark.setString(2, event);
            effect.setString(1, order);
            if (mark.executeUpdate() == 1) effect.executeUpdate(); // else it is a repeat
            db.commit(); // without it, the end of the block rolls back
        }
    }

    static int answer(Headers headers, byte[] body) {
        try {
            if (body.length > 2 << 20) return 413;
            if (!genuine(headers, body)) return 401;
            shipOnce(headers.getFirst("ce-id"), new String(body, UTF_8));
            return 204; // only here, after the commit
        } catch (Exception e) { // SQLSTATE 22 and 23: this event is at fault, and is parked. Else it comes again.
            return e instanceof SQLException s && ("" + s.getSQLState()).matches("2[23].*") ? 422 : 503;
        }
    }

    public static void main(String[] args) throws Exception {
        int port = Integer.parseInt(System.getenv().getOrDefault("PORT", "8090"));
        HttpServer server = HttpServer.create(new java.net.InetSocketAddress("127.0.0.1", port), 128);
        server.createContext("/", call -> call.sendResponseHeaders(
            answer(call.getRequestHeaders(), call.getRequestBody().readNBytes((2 << 20) + 1)), -1));
        server.setExecutor(java.util.concurrent.Executors.newFixedThreadPool(16));
        server.start();
        System.out.println("listening on 127.0.0.1:" + server.getAddress().getPort());
    }
}
