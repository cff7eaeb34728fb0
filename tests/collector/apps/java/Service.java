import io.javalin.Javalin;
import io.javalin.http.UnauthorizedResponse;
import io.javalin.http.ForbiddenResponse;

/** A small service: contacts, for whoever has a key. It knows nothing of auditing. */
public final class Service {
    public static void main(String[] arguments) {
        Javalin app = Javalin.create(config -> config.showJavalinBanner = false);
        app.before(context -> {
            if (context.header("x-api-key") == null && context.header("authorization") == null) {
                throw new UnauthorizedResponse();
            }
            if ("k-intruder".equals(context.header("x-api-key"))) {
                throw new ForbiddenResponse();
            }
        });
        app.get("/contacts", context -> context.result("[]"));
        app.post("/contacts", context -> context.status(201).result("{}"));
        app.get("/contacts/{id}", context -> context.result(context.pathParam("id")));
        app.delete("/contacts/{id}", context -> {
            throw new IllegalStateException("the database is away");
        });
        app.start("127.0.0.1", Integer.parseInt(System.getenv("PORT")));
        System.out.println("listening " + app.port());
    }
}
