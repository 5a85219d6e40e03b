declare const brand: unique symbol;

/** A `T` that only its parser makes, so that a plain `T` cannot be passed by mistake. */
export type Brand<T, Name extends string> = T & { readonly [brand]: Name };
